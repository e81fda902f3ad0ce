"""Cases: recorded tasks as files, what is expected of an agent, and reports of how its versions did."""
