"""The lane: one process per worker that runs the agents with a model, hundreds at a time.

Such an agent spends its life waiting for its model. In a slot of the pool it would hold a whole process for that. Here
each task is a greenlet, and the code that it runs is the same as in a slot. What may take a processor or never return,
a builtin tool or a function, is called in a slot of the pool, which can be killed at a time limit.

    bootstep   starts and stops the lane with Celery's worker
    host       the main process's side: hands over messages and calls, reports what ended
    process    the lane's own process: a greenlet per task, its time limits
    calls      a tool call from the lane in a slot of the pool
    wire       the messages between the two processes
"""
