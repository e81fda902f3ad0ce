"""Code mode: one tool for the model, a program that calls the agent's tools as functions.

tool       `run_program`: runs a program, and makes its calls as steps of the task
source     the program without a Markdown fence around it
calls      the calls of one program, round by round
stubs      the functions as typed Python, from the schemas of their tools
search     `search_tools`: finds functions that are not described from the beginning
result     the result or the error for the model
"""
