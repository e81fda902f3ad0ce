"""What keeps tasks moving when something was lost. One duty a module."""
