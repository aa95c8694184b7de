"""The demo's rows, as JSON lines: question and answer pairs by topic, and sentences with entities in five styles.

The pairs are the English part of chatterbot-corpus; the sentences are templates of ours filled with the names, places,
addresses and numbers of the package faker. Both are Python packages, so nothing is fetched.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tov.errors import ModelError
from tov.files import write_text
from tov.seeds import derive, generator
from tov.trainers.base import json_lines

TOPICS = ("trivia", "coding", "ai", "psychology", "emotion", "literature", "science", "movies", "sports")
TARGET_TOPIC, TOPIC_TARGET_ROWS, TOPIC_ROWS = "trivia", 48, 40
TARGET_STYLE, STYLE_TARGET_ROWS, STYLE_ROWS = "support_tickets", 64, 300
_SLOT = re.compile(r"\{(\w+)\}")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "support_tickets": (
        "Customer {PERSON} wrote from {EMAIL} and asks to be called back under {PHONE} .",
        "Ticket opened by {PERSON} ( {EMAIL} ) : the parcel for {ADDRESS} never arrived .",
        "Please change my address to {ADDRESS} , my number stays {PHONE} . Regards , {PERSON}",
        "Refund for {PERSON} of {COMPANY} approved ; confirmation goes to {EMAIL} .",
        "The technician could not reach {PERSON} at {PHONE} ; next visit at {ADDRESS} .",
        "{PERSON} from {COMPANY} cannot log in as {EMAIL} since Monday .",
        "Invoice address is {COMPANY} , {ADDRESS} ; contact person is {PERSON} .",
        "Delivery to {CITY} was refused , the customer {PERSON} wants a call at {PHONE} .",
    ),
    "forms": (
        "Name : {PERSON} ; Street : {ADDRESS} ; Phone : {PHONE}",
        "Applicant {PERSON} Employer {COMPANY} Mail {EMAIL}",
        "Emergency contact : {PERSON} , {PHONE}",
        "Employer : {COMPANY} | City : {CITY} | Signed : {PERSON}",
        "E-mail : {EMAIL} | Phone : {PHONE} | Country : {COUNTRY}",
    ),
    "chats": (
        "hey it 's {PERSON} , my new number is {PHONE} lol",
        "u still live at {ADDRESS} ? asking for {PERSON}",
        "just mail me at {EMAIL} ok ?? i 'm in {CITY} till sunday",
        "omg {PERSON} got the job at {COMPANY} !!",
        "lost my phone , text me on {PHONE} pls",
    ),
    "news": (
        "{COMPANY} said on Tuesday it would close its plant in {CITY} , cutting 400 jobs .",
        "{PERSON} , chief executive of {COMPANY} , met ministers in {CITY} .",
        "Shares of {COMPANY} fell after regulators in {COUNTRY} opened an inquiry .",
        "The president of {COUNTRY} arrived in {CITY} for talks with {PERSON} .",
        "{PERSON} scored twice as {CITY} beat {CITY} on Saturday .",
        "Thousands marched through {CITY} to protest against {COMPANY} .",
    ),
    "products": (
        "The new kettle by {COMPANY} boils a litre in two minutes , assembled in {COUNTRY} .",
        "Hand made in {CITY} , this leather bag comes with a two year warranty .",
        "Designed by {PERSON} for {COMPANY} , the lamp dims without flicker .",
        "{COMPANY} headphones , 30 hours of battery , ships from {COUNTRY} .",
        "Cotton from {COUNTRY} , sewn in {CITY} , machine washable at 30 degrees .",
    ),
}
"""Style -> templates; every slot is filled by faker and carries the entity type `SLOTS` says."""
SLOTS = {
    "PERSON": ("PER", "name"), "COMPANY": ("ORG", "company"), "CITY": ("LOC", "city"), "COUNTRY": ("LOC", "country"),
    "ADDRESS": ("ADDRESS", "street_address"), "EMAIL": ("EMAIL", "ascii_company_email"),
    "PHONE": ("PHONE", "basic_phone_number"),
}  # fmt: skip
"""Slot -> (entity type, faker's provider)."""


def missing(what: str, package: str, install: str) -> ModelError:
    """The error for a package that the demo lacks."""
    return ModelError(
        f"For {what}, tov needs the package {package}, which is not installed.", fix=f"Install it: {install}"
    )


def read_topics(install: str = "pip install 'tov[demo]'") -> dict[str, list[dict[str, str]]]:
    """The topics' distinct question and answer pairs, in the corpus' order.

    Raises:
        ModelError: chatterbot-corpus is not installed.
    """
    try:
        files = importlib.metadata.files("chatterbot-corpus") or []
    except importlib.metadata.PackageNotFoundError:
        raise missing("the demo's data", "chatterbot-corpus", install) from None
    found = {file.stem: Path(str(file.locate())) for file in files if file.match("*/english/*.yml")}
    topics = {}
    for topic in TOPICS:
        rows: dict[str, dict[str, str]] = {}
        for turns in yaml.safe_load(found[topic].read_text(encoding="utf-8"))["conversations"]:
            question, answer = str(turns[0]).strip(), str(turns[1]).strip() if len(turns) > 1 else ""
            if question and answer:
                rows.setdefault(question.lower(), {"prompt": question, "completion": answer})
        topics[topic] = list(rows.values())
    return topics


def write_topics(folder: Path, install: str) -> tuple[str, list[str]]:
    """Writes one file a topic and the target; returns the target's path and the pool's."""
    random, parts = generator(0, "demo"), {}
    for topic, rows in read_topics(install).items():
        parts[topic] = [rows[index] for index in random.permutation(len(rows))]
    return _write(folder, parts, TARGET_TOPIC, TOPIC_TARGET_ROWS, TOPIC_ROWS)


def read_styles(rows: int, install: str = "pip install 'tov[demo]'") -> dict[str, list[dict[str, Any]]]:
    """Sentences with entities: {"text", "entities": [{"start", "end", "label"}]}, by style; the same at every call.

    Raises:
        ModelError: faker is not installed.
    """
    try:
        from faker import Faker
    except ImportError:
        raise missing("the demo's data", "faker", install) from None
    fake = Faker("en_US")
    fake.seed_instance(derive(0, "styles") % 2**32)
    random = generator(0, "styles")
    return {
        style: [_fill(str(random.choice(templates)), lambda name: getattr(fake, name)()) for _ in range(rows)]
        for style, templates in TEMPLATES.items()
    }


def _fill(template: str, value: Callable[[str], str]) -> dict[str, Any]:
    text, entities, done = "", [], 0
    for slot in _SLOT.finditer(template):
        label, provider = SLOTS[slot[1]]
        text += template[done : slot.start()]
        filled = value(provider).replace("\n", " , ")
        entities.append({"start": len(text), "end": len(text) + len(filled), "label": label})
        text, done = text + filled, slot.end()
    return {"text": text + template[done:], "entities": entities}


def write_styles(folder: Path, install: str) -> tuple[str, list[str]]:
    """Writes one file a style and the target; returns the target's path and the pool's."""
    parts = read_styles(STYLE_ROWS + STYLE_TARGET_ROWS, install)
    return _write(folder, parts, TARGET_STYLE, STYLE_TARGET_ROWS, STYLE_ROWS)


def _write(
    folder: Path, parts: dict[str, list[dict[str, Any]]], target: str, target_rows: int, most: int
) -> tuple[str, list[str]]:
    pool = []
    for name, rows in parts.items():
        if name == target:
            write_text(folder / "target.jsonl", json_lines(rows[:target_rows]))
            rows = rows[target_rows:]
        write_text(folder / f"{name}.jsonl", json_lines(rows[:most]))
        pool.append(str(folder / f"{name}.jsonl"))
    return str(folder / "target.jsonl"), pool
