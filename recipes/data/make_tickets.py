"""Write the demo's data: support tickets of an invented online shop, the line that routes each, and a mailbox.

    python recipes/data/make_tickets.py [FOLDER]

A ticket says what is wrong (which decides the team), how much it hurts (which decides the priority), and names
a product and an order. Problem and impact are drawn from the phrases below; one pair in six of them appears in the
held-out file only, so a model has to read both parts rather than remember tickets. The mailbox holds other tickets
without their answers: the plain text that the demo's base model learns from. Same script, same bytes.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NUM_TRAIN, NUM_TEST, NUM_MAILBOX = 900, 150, 1500
HELD_OUT_SHARE = 6
SEED = 2026

PRODUCTS = ("kettle", "toaster", "blender", "lamp", "heater", "fan", "radio", "camera", "printer", "scale")

PROBLEMS = {
    "billing": (
        "I was charged twice for the {product}.",
        "The invoice for my {product} shows the wrong amount.",
        "My bank statement lists two payments for one {product}.",
        "The discount code did not come off the price of the {product}.",
        "I still have not received the refund for the {product} you agreed to.",
        "You billed me for a {product} that I cancelled the same day.",
        "I need a receipt with our VAT number for the {product}.",
        "My card was declined for the {product}, yet the money is gone.",
        "The price of the {product} in my basket and on the bill are not the same.",
        "Please send the invoice for the {product} to our accounting office.",
        "I paid for the {product} with a gift card and it was not counted.",
        "There is a fee on the bill for my {product} that nobody told me about.",
    ),
    "shipping": (
        "The tracking page for my {product} has not moved for a week.",
        "The courier says the {product} was delivered, but there is nothing here.",
        "The {product} went to my old address.",
        "You sent me someone else's parcel instead of the {product}.",
        "The box was crushed when the {product} arrived.",
        "When will the {product} leave your warehouse?",
        "The driver left the {product} out in the rain.",
        "Only half of the delivery came, the {product} was not in it.",
        "The parcel with the {product} is stuck at customs.",
        "Can you deliver the {product} to a pick-up point instead?",
        "I asked for express delivery of the {product} and it still has not come.",
        "The {product} was sent back to you because nobody rang the bell.",
    ),
    "repair": (
        "The {product} stopped working after two days.",
        "My {product} makes a grinding noise.",
        "There is a burnt smell when I switch the {product} on.",
        "The {product} turns itself off after a minute.",
        "A plastic part of the {product} snapped off.",
        "The {product} does not start any more.",
        "The switch on the {product} is stuck.",
        "The {product} leaks oil onto the table.",
        "The {product} gets far too hot to touch.",
        "The display of the {product} stays dark.",
        "The cable of the {product} is loose and it sparks.",
        "Since this morning the {product} only blinks red.",
    ),
    "account": (
        "I cannot log in to register the {product}.",
        "The password reset mail never comes, so I cannot see my {product}.",
        "Please change the email address on the account I bought the {product} with.",
        "The site says my account is locked since I ordered the {product}.",
        "Somebody else logged in to my account and looked at the {product} page.",
        "I have two accounts and the {product} is in the wrong one.",
        "The app signs me out each time I open the {product}.",
        "How do I delete my profile now that the {product} is here?",
        "The code to confirm my login is refused, I only want to rate the {product}.",
        "My user name is spelled wrong on the page of the {product}.",
        "The {product} does not show up under my profile.",
        "I want to stop the newsletter that came after I bought the {product}.",
    ),
    "sales": (
        "Is there a bigger model of the {product}?",
        "Do you have the {product} in green?",
        "Which filter fits the {product}?",
        "Could you make us an offer for twenty pieces of the {product}?",
        "Does the {product} come with a longer warranty?",
        "Will the {product} be in stock again?",
        "Can the {product} be used abroad with another plug?",
        "What is the difference between the {product} and last year's one?",
        "Is the {product} a good present for a beginner?",
        "How loud is the {product} compared with others?",
        "Do schools get a better price on the {product}?",
        "Would you recommend the {product} for a small kitchen?",
    ),
}

IMPACTS = {
    "high": (
        "This is urgent.",
        "I need an answer today.",
        "We cannot open our shop without it.",
        "My patience is at an end and so is my lawyer's.",
        "It is dangerous and there are children in the house.",
        "We are losing money every hour.",
        "Please call me back at once.",
        "The guests arrive tonight.",
        "If this is not solved by noon I go to the police.",
        "Everything here stands still because of it.",
    ),
    "normal": (
        "Please let me know within the week.",
        "An answer in the next few days would be good.",
        "It is annoying, but I can manage for now.",
        "Could somebody look into it?",
        "I would like to have this sorted out by the end of the month.",
        "What do you suggest?",
        "Kindly tell me what to do next.",
        "I can send photos if that helps.",
        "I have a spare one until Friday.",
        "Your colleague asked me to write to you.",
    ),
    "low": (
        "There is no hurry at all.",
        "Whenever you find the time.",
        "It is only a small thing.",
        "I am just curious.",
        "It can easily wait.",
        "Not important, I only wanted to mention it.",
        "Next month is early enough.",
        "No need to call.",
        "It does not bother me much.",
        "Take your time with it.",
    ),
}

OPENINGS = ("", "", "Hello,", "Hi there,", "Good morning,", "Dear team,", "Hi, me again.", "To whom it may concern:")
CLOSINGS = ("", "", "Thanks", "Many thanks, Jo", "Best regards, M. Lind", "Cheers", "Yours, Ada", "Sent from my phone")
REFERENCES = (
    "Order {order}.",
    "My order number is {order}.",
    "It is about order {order}.",
    "(order {order})",
    "Ref. {order}",
)


def is_held_out(problem: str, impact: str) -> bool:
    """Whether this pair of phrases belongs to the held-out file; about one pair in six does.

    Each problem and each impact is in pairs of both files.
    """
    problems = [phrase for phrases in PROBLEMS.values() for phrase in phrases]
    impacts = [phrase for phrases in IMPACTS.values() for phrase in phrases]
    return (problems.index(problem) + impacts.index(impact)) % HELD_OUT_SHARE == 0


def make_ticket(draw: random.Random) -> tuple[bool, dict]:
    """One ticket as a chat row, and whether it is held out."""
    team, priority = draw.choice(list(PROBLEMS)), draw.choice(list(IMPACTS))
    problem, impact = draw.choice(PROBLEMS[team]), draw.choice(IMPACTS[priority])
    product = draw.choice(PRODUCTS)
    order = f"{draw.choice('ABCDEFGH')}-{draw.randrange(1000, 10_000)}"
    body = [problem.format(product=product), impact, draw.choice(REFERENCES).format(order=order)]
    draw.shuffle(body)
    ticket = "\n".join(filter(None, [draw.choice(OPENINGS), " ".join(body), draw.choice(CLOSINGS)]))
    answer = f"team: {team} | priority: {priority}"
    messages = [{"role": "user", "content": ticket}, {"role": "assistant", "content": answer}]
    return is_held_out(problem, impact), {"messages": messages}


def make_files(folder: Path) -> None:
    """Write `tickets_train.jsonl`, `tickets_test.jsonl` and `mailbox.txt`; order numbers make every ticket unique."""
    draw = random.Random(SEED)
    train: list[dict] = []
    test: list[dict] = []
    while len(train) < NUM_TRAIN + NUM_MAILBOX or len(test) < NUM_TEST:
        held_out, row = make_ticket(draw)
        (test if held_out else train).append(row)
    for name, rows in (("tickets_train.jsonl", train[:NUM_TRAIN]), ("tickets_test.jsonl", test[:NUM_TEST])):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    mailbox = [row["messages"][0]["content"] for row in train[NUM_TRAIN : NUM_TRAIN + NUM_MAILBOX]]
    (folder / "mailbox.txt").write_text("\n\n".join(mailbox) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_files(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
