"""The batch lane's side of the orchestrator: model calls in Message Batches, at half the price.

batcher    the loop: gathers calls, creates batches, finds those whose creation got no answer, collects results
api        the Message Batches API, through the SDK
batch      a batch as the API shows it, and how requests fail
results    what a line of results means for its call
"""
