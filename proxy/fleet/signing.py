"""Signatures between the nodes of a fleet: HMAC-SHA256 with its secret, which is never sent. Pure; times are given in.

A request is signed for one node, method, target, range and moment, with a nonce. An answer is signed for that very
request: its status, what it says, and its body where that is kept whole (else its content must prove itself by its
digest). All requests only read, so one that is heard and sent again tells nobody more than its first answer did. What a
node leaves in Redis for the others is sealed for what it is about.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from proxy.fleet.protocol import ANSWER_HEADER, PROTOCOL, REQUEST_HEADER, OtherProtocol
from proxy.oci.errors import BadContent, Denied, Unauthorized

SKEW_SECONDS = 300
CHALLENGE = f'{REQUEST_HEADER} realm="fleet"'
_VERSION = re.compile(r"v=([0-9]{1,6})(?:;|$)")
_NODE = re.compile(r"node=([\x21-\x3a\x3c-\x7e]{1,300})(?:;|$)")
_REQUEST = re.compile(
    r"v=[0-9]+;node=([\x21-\x3a\x3c-\x7e]{1,300});t=([0-9]{1,12});n=([0-9a-f]{32});sig=([0-9a-f]{64})"
)
_ANSWER = re.compile(r"v=([0-9]{1,6});body=([0-9a-f]{64}|);sig=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks, and of whom. `to` and `node` are origins: the node that is asked, the one that asks.

    target: path and query as they are sent. span: the Range header, empty without one.
    """

    to: str
    method: str
    target: str
    span: str
    node: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed request: the header's value, and the signature that its answer is bound to."""

    header: str
    signature: str


@dataclass(frozen=True, slots=True)
class Heard:
    """The head of a verified answer. `body`: SHA-256 of the whole body in hex, empty where that is not signed."""

    status: int
    says: str
    body: str


def sign_request(secret: bytes, question: Question, now: float, nonce: str) -> Signed:
    """Sign a question at the unix time `now` with 32 hex digits that were never used before."""
    signature = _request_signature(secret, question, int(now), nonce)
    return Signed(f"v={PROTOCOL};node={question.node};t={int(now)};n={nonce};sig={signature}", signature)


def asking_node(header: str) -> str:
    """Return the URL of the node that a request says it comes from, verified or not; empty where it says none."""
    found = _NODE.search(header)
    return found[1] if found else ""


def verify_request(secret: bytes, header: str | None, to: str, method: str, target: str, span: str, now: float) -> str:
    """Return the signature of a request to the node `to`, to be given to `sign_answer`.

    Raises:
        OtherProtocol: it is of another version.
        Unauthorized: it is not signed.
        Denied: the signature is not ours, for another request or node, or of another time.
    """
    version = _VERSION.match(header or "")
    if header is None or version is None:
        raise Unauthorized("only the nodes of this fleet are answered here", challenge=CHALLENGE)
    if int(version[1]) != PROTOCOL:
        asking, theirs = asking_node(header) or "a node", int(version[1])
        old = to if theirs > PROTOCOL else asking
        raise OtherProtocol(f"node {asking} speaks fleet protocol {theirs}, {to} speaks {PROTOCOL}: upgrade {old}")
    found = _REQUEST.fullmatch(header)
    if found is None:
        raise Unauthorized(f"the header {REQUEST_HEADER} is malformed", challenge=CHALLENGE)
    node, moment, nonce, signature = found.groups()
    expected = _request_signature(secret, Question(to, method, target, span, node), int(moment), nonce)
    if not hmac.compare_digest(expected, signature):
        raise Denied(
            f"the signature of node {node} is wrong here: its fleet secret is another one, or it was meant for another"
            f" node than {to} (what this one advertises)"
        )
    if abs(now - int(moment)) > SKEW_SECONDS:
        raise Denied(
            f"node {node} signed at {_stamp(int(moment))}, and {to} has {_stamp(now)}: more than"
            f" {SKEW_SECONDS // 60} minutes apart; set the clocks"
        )
    return signature


def sign_answer(secret: bytes, request: str, status: int, says: str, body: str) -> str:
    """Return the header of an answer to the request that has the signature `request`; `body` as in Heard."""
    return f"v={PROTOCOL};body={body};sig={_answer_signature(secret, request, Heard(status, says, body))}"


def verify_answer(secret: bytes, header: str | None, request: str, status: int, says: str) -> Heard:
    """Return the head of an answer to that request. Raises BadContent where no node of this fleet gave it."""
    found = _ANSWER.fullmatch(header or "")
    if found is None:
        raise BadContent(f"its answer ({status}) has no valid {ANSWER_HEADER}: no node of this fleet gave it")
    heard = Heard(status, says, found[2])
    expected = _answer_signature(secret, request, heard)
    if int(found[1]) != PROTOCOL or not hmac.compare_digest(expected, found[3]):
        raise BadContent(f"the signature of its answer ({status}) is wrong: no node of this fleet gave it")
    return heard


def hash_of(body: bytes) -> str:
    """Return what is signed of a whole body."""
    return hashlib.sha256(body).hexdigest()


def seal(secret: bytes, about: str, data: bytes) -> bytes:
    """Return `data` about something as it is kept where others may write, such as Redis: a signature in front."""
    return b"%s %s" % (_signature(secret, "kept", PROTOCOL, about, hash_of(data)).encode(), data)


def unseal(secret: bytes, about: str, kept: bytes) -> bytes:
    """Return the data that was sealed about this. Raises BadContent where no node of this fleet did so."""
    signature, _, data = kept.partition(b" ")
    if not hmac.compare_digest(_signature(secret, "kept", PROTOCOL, about, hash_of(data)).encode(), signature):
        raise BadContent(f"what is kept about {about} was not written by a node of this fleet")
    return data


def _request_signature(secret: bytes, question: Question, moment: int, nonce: str) -> str:
    asked = (question.to, question.method, question.target, question.span, question.node)
    return _signature(secret, "request", PROTOCOL, *asked, moment, nonce)


def _answer_signature(secret: bytes, request: str, heard: Heard) -> str:
    return _signature(secret, "answer", PROTOCOL, request, heard.status, heard.says, heard.body)


def _signature(secret: bytes, *fields: str | int) -> str:
    return hmac.new(secret, json.dumps(fields).encode(), "sha256").hexdigest()


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
