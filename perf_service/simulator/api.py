"""Request bodies and answers of the generation endpoints: OpenAI completions and TGI's own."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any, Protocol

from perf_service.simulator.args import ServerOptions
from perf_service.simulator.core import Request
from perf_service.simulator.http import Exchange

_CHARS_PER_TOKEN = 4
_WORDS = (" the", " of", " and", " to", " in", " a", " is", " that", " for", " it", " as", " was", " with", " be")
_ids = itertools.count(1)


class InvalidBodyError(Exception):
    """The request body is wrong; ``status`` is the HTTP status the engine answers with."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Answer(Protocol):
    """One generation on its way to its client."""

    request: Request

    def accepted(self) -> None:
        """The engine has taken the request."""

    def token(self, last: bool) -> None:
        """One more token."""


def tokenize(prompt: Any) -> list[int] | list[str]:
    """Token ids as they are, or text in pieces of four characters. Raises InvalidBodyError."""
    if isinstance(prompt, str):
        return [prompt[i : i + _CHARS_PER_TOKEN] for i in range(0, len(prompt), _CHARS_PER_TOKEN)] or [""]
    if isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt):
        return prompt
    raise InvalidBodyError("prompt must be a string or a non-empty list of token ids")


def block_hashes(tokens: list[int] | list[str], size: int) -> tuple[int, ...]:
    """One hash per full block; each covers the whole prefix up to the end of its block."""
    chain, out = 0, []
    for start in range(0, len(tokens) - size + 1, size):
        chain = hash((chain, tuple(tokens[start : start + size])))
        out.append(chain)
    return tuple(out)


def _read(exchange: Exchange) -> dict[str, Any]:
    try:
        body = json.loads(exchange.request.body)
    except ValueError as error:
        raise InvalidBodyError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidBodyError("the body must be a JSON object")
    return body


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidBodyError(f"{name} must be a positive integer, got {value!r}")
    return value


class _Drawer:
    """Builds core requests; draws where an answer ends when the client does not ignore EOS."""

    def __init__(self, options: ServerOptions) -> None:
        self._flags = options.engine.flags
        self._mean = options.mean_output_tokens
        self._rng = random.Random(options.seed)

    def request(self, tokens: list[int] | list[str], max_tokens: int, ignore_eos: bool, now: float) -> Request:
        length, reason = max_tokens, "length"
        if self._mean > 0 and not ignore_eos:
            drawn = 1 + int(math.log(1 - self._rng.random()) / math.log(1 - 1 / max(self._mean, 1.0001)))
            if drawn < max_tokens:
                length, reason = drawn, "stop"
        hashes = block_hashes(tokens, self._flags.kv_block_tokens) if self._flags.enable_prefix_caching else None
        return Request(now, len(tokens), length, max_tokens=max_tokens, block_hashes=hashes, finish_reason=reason)


class Completions:
    """``/v1/completions`` and ``/v1/chat/completions``."""

    def __init__(self, options: ServerOptions, *, chat: bool = False) -> None:
        self.model = options.model_name
        self.chat = chat
        self._options = options
        self._drawer = _Drawer(options)

    def error(self, status: int, message: str) -> dict[str, Any]:
        """The engine's error body."""
        kind = {400: "BadRequestError", 404: "NotFoundError", 429: "overloaded"}.get(status, "ServiceUnavailableError")
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def begin(self, exchange: Exchange, now: float) -> Answer:
        """Reads the body. Raises InvalidBodyError."""
        body = _read(exchange)
        model = body.get("model")
        if self._options.engine.flags.engine == "vllm" and model not in (None, self.model):
            raise InvalidBodyError(f"The model `{model}` does not exist.", 404)
        tokens = tokenize(self._prompt(body))
        room = self._options.engine.flags.max_model_len - len(tokens)
        asked = body.get("max_completion_tokens", body.get("max_tokens"))
        if asked is None:
            asked = max(room, 1) if self.chat else 16  # OpenAI's default for completions
        request = self._drawer.request(tokens, _positive(asked, "max_tokens"), bool(body.get("ignore_eos", False)), now)
        options = body.get("stream_options") or {}
        usage = isinstance(options, dict) and bool(options.get("include_usage", False))
        return CompletionAnswer(self, exchange, request, bool(body.get("stream", False)), usage)

    def _prompt(self, body: dict[str, Any]) -> Any:
        if not self.chat:
            if "prompt" not in body:
                raise InvalidBodyError("prompt is required")
            return body["prompt"]
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise InvalidBodyError("messages must be a non-empty list of objects")
        return "\n".join(f"{m.get('role', 'user')}: {m.get('content') or ''}" for m in messages)


class CompletionAnswer:
    """One OpenAI completion, streamed or whole."""

    def __init__(self, api: Completions, exchange: Exchange, request: Request, stream: bool, usage: bool) -> None:
        self.request = request
        self._api, self._exchange, self._stream, self._usage = api, exchange, stream, usage
        self._sent = 0
        self._id = f"{'chatcmpl' if api.chat else 'cmpl'}-sim-{next(_ids)}"

    def accepted(self) -> None:
        """Part of Answer."""
        if self._stream:
            self._exchange.start_stream()

    def token(self, last: bool) -> None:
        """Part of Answer."""
        self._sent += 1
        if self._stream:
            word = _WORDS[self._sent % len(_WORDS)]
            self._exchange.send_event(json.dumps(self._body([self._choice(word, last)], chunk=True)))
            if last:
                if self._usage:
                    self._exchange.send_event(json.dumps({**self._body([], chunk=True), "usage": self._counts()}))
                self._exchange.send_event("[DONE]")
                self._exchange.end_stream()
        elif last:
            text = "".join(_WORDS[i % len(_WORDS)] for i in range(1, self._sent + 1))
            body = self._body([self._choice(text, last)], chunk=False)
            self._exchange.respond_json(200, {**body, "usage": self._counts()})

    def _choice(self, text: str, last: bool) -> dict[str, Any]:
        reason = self.request.finish_reason if last else None
        if not self._api.chat:
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        part = {"content": text} if self._stream else {"role": "assistant", "content": text}
        return {"index": 0, "delta" if self._stream else "message": part, "finish_reason": reason}

    def _body(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if not self._api.chat else "chat.completion" + (".chunk" if chunk else "")
        return {
            "id": self._id, "object": kind, "created": int(self.request.arrival), "model": self._api.model,
            "choices": choices,
        }  # fmt: skip

    def _counts(self) -> dict[str, int]:
        prompt = self.request.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": self._sent, "total_tokens": prompt + self._sent}


class GenerateApi:
    """TGI's ``/generate`` and ``/generate_stream``."""

    def __init__(self, options: ServerOptions, *, stream: bool = False) -> None:
        self._drawer = _Drawer(options)
        self._stream = stream

    def error(self, status: int, message: str) -> dict[str, Any]:
        """TGI's error body."""
        return {"error": message, "error_type": {422: "validation", 429: "overloaded"}.get(status, "generation")}

    def begin(self, exchange: Exchange, now: float) -> Answer:
        """Reads the body. Raises InvalidBodyError."""
        try:
            body = _read(exchange)
            inputs, parameters = body.get("inputs"), body.get("parameters") or {}
            if not isinstance(inputs, str) or not inputs or not isinstance(parameters, dict):
                raise InvalidBodyError("`inputs` must be a non-empty string and `parameters` an object")
            limit = _positive(parameters.get("max_new_tokens", 100), "max_new_tokens")
        except InvalidBodyError as error:
            raise InvalidBodyError(str(error), 422) from None
        ignore_eos = bool(parameters.get("ignore_eos_token", False))
        return GenerateAnswer(exchange, self._drawer.request(tokenize(inputs), limit, ignore_eos, now), self._stream)


class GenerateAnswer:
    """One TGI generation."""

    def __init__(self, exchange: Exchange, request: Request, stream: bool) -> None:
        self.request = request
        self._exchange, self._stream = exchange, stream
        self._text: list[str] = []

    def accepted(self) -> None:
        """Part of Answer."""
        if self._stream:
            self._exchange.start_stream()

    def token(self, last: bool) -> None:
        """Part of Answer."""
        word = _WORDS[len(self._text) % len(_WORDS)]
        self._text.append(word)
        text = "".join(self._text) if last else None
        if self._stream:
            token = {"id": len(self._text), "text": word, "logprob": 0.0, "special": False}
            event = {"index": len(self._text), "token": token, "generated_text": text, "details": None}
            self._exchange.send_event(json.dumps(event))
            if last:
                self._exchange.end_stream()
        elif last:
            headers = {
                "x-prompt-tokens": str(self.request.prompt_tokens),
                "x-generated-tokens": str(len(self._text)),
            }
            self._exchange.respond_json(200, {"generated_text": text}, headers)
