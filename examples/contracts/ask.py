"""Asks the agent `contract-reader` about a PDF: `python ask.py contract.pdf "When can it be ended?"`.

Running it again asks the same task: the file's id is a digest of its content. Needs MINION_API_URL and MINION_API_KEY.
"""

import sys

from minions import Client


def main(path: str, question: str) -> None:
    """Upload the contract, ask, and print the answer with the sentences that it cites."""
    with Client() as client:
        contract = client.upload(path)["id"]
        task = client.submit(
            "contract-reader",
            {"question": question, "contract": {"$file": contract}},
            idempotency_key=f"{contract[:20]} {question}"[:255],
        )
        answer = task.result(timeout=600)
    print(answer["content"])
    for cited in answer.get("citations", ()):
        print(f"- {cited['document_title']}, page {cited['start_page_number']}: {cited['cited_text']!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
