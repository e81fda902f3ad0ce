"""Addresses."""

from django.urls import path
from orders import views

urlpatterns = [path("orders/<int:number>/return", views.return_order)]
