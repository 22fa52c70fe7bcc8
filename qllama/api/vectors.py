"""Numbers of an open model: logits, embeddings, scores of given texts.

Owns which tokens of a text they are of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from qllama.api.answers import AnsweringModel
from qllama.errors import ContextLengthError, EvaluationError
from qllama.generation.embedding import MOST_TOGETHER, Pooling, embed
from qllama.generation.logprobs import TokenLogprob
from qllama.generation.scoring import score_tokens

__all__ = ["VectorModel"]


class VectorModel(AnsweringModel):
    """What `Llama` computes for those who want numbers."""

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the model's output after every token of a text, teacher-forced.

        Parameters
        ----------
        token_ids : sequence of int, (n_tokens,)
            At least one.

        Returns
        -------
        float32, (n_tokens, vocab_size)
            Row i holds the logits of the token that follows token i.

        Raises
        ------
        ContextLengthError
            When the tokens do not fit the context window.
        ValueError
            When there are no tokens, or one is outside the vocabulary.
        """
        tokens = np.array(self._checked(token_ids), np.int32)
        with self._lock:
            return self._session.evaluate(tokens, logits_from=0).logits

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
    ) -> npt.NDArray[np.float32]:
        """Return one vector a text, from the model's last layer.

        Texts of all lengths are evaluated together; a vector is the same whatever stands
        beside its text.

        Parameters
        ----------
        texts : str, sequence of str or of sequences of int
            A text, texts, or token ids of texts.
        pooling : str
            `mean` of the states of all tokens, or the state of the `last`, or of the first
            (`cls`).
        normalize : bool
            Divide each vector by its length, so that a product of two is their cosine.

        Returns
        -------
        float32, (n_texts, hidden_size)

        Raises
        ------
        ContextLengthError
            When a text does not fit the context window; it is never cut.
        ValueError
            When a text has no tokens, or `pooling` is unknown.
        """
        batch = [
            self._text_ids(text, add_eos=True)
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        for i, ids in enumerate(batch):
            if not ids:
                raise ValueError(f"texts[{i}]: expected at least one token, found none")
            if len(ids) > self.n_ctx:
                raise ContextLengthError(
                    f"texts[{i}] has {len(ids)} tokens, more than the context window of "
                    f"{self.n_ctx}: split it, or load the model with a larger n_ctx"
                )
        if not batch:
            return np.empty((0, self.config.hidden_size), np.float32)
        n_slots = min(len(batch), MOST_TOGETHER)
        n_ctx = max(map(len, batch))
        adapter = self._session.adapter
        with (
            self._lock,
            closing(self._engine_for(n_ctx=n_ctx, n_slots=n_slots, adapter=adapter)) as engine,
        ):
            return embed(engine, batch, pooling=pooling, normalize=normalize)

    def token_logprobs(
        self, text: str | Sequence[int], prompt: str = "", *, top: int = 0
    ) -> list[TokenLogprob]:
        """Return how likely each token of a text was after what stands before it.

        Parameters
        ----------
        text : str or sequence of int
            Where nothing comes before it, no BOS either, its first token is left out.
        prompt : str
            What stands before the text, itself not scored; only with a str.
        top : int
            Have so many of the likeliest tokens named, too.

        Raises
        ------
        ContextLengthError
            When prompt and text do not fit the context window.
        EvaluationError
            When no token is left to be scored.
        """
        ids = self._text_ids(prompt + text if isinstance(text, str) else text)
        first = 1
        if prompt:
            # Where the text begins within a token of both, that token is scored.
            before = self._text_ids(prompt)
            while first < min(len(before), len(ids)) and before[first] == ids[first]:
                first += 1
        if len(ids) <= first:
            raise EvaluationError(f"expected more than {first} tokens to score, found {len(ids)}")
        with self._lock:
            return score_tokens(self._session, np.array(ids, np.int32), first, top)

    def score(self, text: str | Sequence[int], prompt: str = "") -> float:
        """Return the logarithm of a text's probability, in nats.

        Parameters
        ----------
        text, prompt
            As in `token_logprobs`, which says what is raised.
        """
        return math.fsum(token.logprob for token in self.token_logprobs(text, prompt))

    def perplexity(self, text: str | Sequence[int]) -> float:
        """Return exp of the mean of -log of the probabilities of a text's tokens.

        For texts longer than the context window there is `qllama perplexity`, and
        `qllama.evaluation`.

        Parameters
        ----------
        text : str or sequence of int
            As in `token_logprobs`, which says what is raised.
        """
        scored = self.token_logprobs(text)
        return math.exp(-math.fsum(token.logprob for token in scored) / len(scored))
