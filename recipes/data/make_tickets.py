"""Write the demo's data: support tickets of an invented online shop, the line that routes each, and a mailbox.

    python recipes/data/make_tickets.py [FOLDER]

A ticket says what is wrong (which decides the team), how much it hurts (which decides the priority), and names
a product. Problem and impact are drawn from the phrases below; one pair in six of them appears in the held-out file
only, so a model has to read both parts rather than remember tickets. The mailbox holds other tickets, each with the
reply that a person wrote: the plain text that the demo's base model learns from. A reply says in a sentence who has
the ticket; the line that routes it stands nowhere in the mailbox. Same script, same bytes.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

NUM_TRAIN, NUM_TEST, NUM_MAILBOX = 900, 150, 3000
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
REPLIES = (
    "The {team} team has it now, with {priority} priority.",
    "I gave this to the {team} team with {priority} priority.",
)


def is_held_out(problem: str, impact: str) -> bool:
    """Whether this pair of phrases belongs to the held-out file; about one pair in six does.

    Each problem and each impact is in pairs of both files.
    """
    problems = [phrase for phrases in PROBLEMS.values() for phrase in phrases]
    impacts = [phrase for phrases in IMPACTS.values() for phrase in phrases]
    return (problems.index(problem) + impacts.index(impact)) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Ticket:
    """A ticket, what it says and where it goes."""

    text: str
    problem: str
    """With the product in it."""

    impact: str
    team: str
    priority: str
    is_held_out: bool


def make_ticket(draw: random.Random) -> Ticket:
    """A ticket of drawn phrases."""
    team, priority = draw.choice(list(PROBLEMS)), draw.choice(list(IMPACTS))
    problem, impact = draw.choice(PROBLEMS[team]), draw.choice(IMPACTS[priority])
    product = draw.choice(PRODUCTS)
    body = [problem.format(product=product), impact]
    draw.shuffle(body)
    text = "\n".join(filter(None, [draw.choice(OPENINGS), " ".join(body), draw.choice(CLOSINGS)]))
    return Ticket(text, problem.format(product=product), impact, team, priority, is_held_out(problem, impact))


def as_row(ticket: Ticket) -> str:
    """A ticket and the line that routes it, as a line of JSON."""
    answer = f"team: {ticket.team} | priority: {ticket.priority}"
    messages = [{"role": "user", "content": ticket.text}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def as_letters(ticket: Ticket, draw: random.Random) -> str:
    """A ticket and a reply to it, a paragraph each."""
    return f"{ticket.text}\n\n{draw.choice(REPLIES).format(team=ticket.team, priority=ticket.priority)}\n\n"


def make_files(folder: Path) -> None:
    """Write `tickets_train.jsonl`, `tickets_test.jsonl` and `mailbox.txt`; no problem has the same impact twice."""
    draw = random.Random(SEED)
    train: list[Ticket] = []
    test: list[Ticket] = []
    seen: set[tuple[str, str]] = set()
    while len(train) < NUM_TRAIN + NUM_MAILBOX or len(test) < NUM_TEST:
        ticket = make_ticket(draw)
        if (ticket.problem, ticket.impact) not in seen:
            seen.add((ticket.problem, ticket.impact))
            (test if ticket.is_held_out else train).append(ticket)
    for name, tickets in (("tickets_train.jsonl", train[:NUM_TRAIN]), ("tickets_test.jsonl", test[:NUM_TEST])):
        (folder / name).write_text("".join(as_row(ticket) for ticket in tickets), encoding="utf-8")
    mailbox = train[NUM_TRAIN : NUM_TRAIN + NUM_MAILBOX]
    (folder / "mailbox.txt").write_text("".join(as_letters(ticket, draw) for ticket in mailbox), encoding="utf-8")


if __name__ == "__main__":
    make_files(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
