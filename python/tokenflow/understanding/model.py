"""The whole understanding model: tokens of pictures among words, words out.

The tokenizer turns a picture into features of its tokens, the projector brings them to
the language model's width, and they take the places of the picture's ids in the
prompt. Everything behind that is a causal language model of transformers.
Source: TokenFlow, arXiv:2412.03069, section 3.3.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow._language import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
)
from tokenflow._transformers import PreTrainedModel, quiet, register
from tokenflow.understanding import answering, named, parts, upstream
from tokenflow.understanding.config import TokenFlowUnderstandingConfig
from tokenflow.understanding.processing import TokenFlowProcessor, positions
from tokenflow.understanding.projector import Projector
from tokenflow.understanding.sight import Sight, TeacherSight

PICTURES = ("pixel_values", "indices")
SHARD = "5GB"  # of weights in one file


class TokenFlowForUnderstanding(PreTrainedModel, GenerationMixin):
    """A causal language model that reads the tokens of pictures.

    Projector and language model run in the dtype asked for; the tokenizer is frozen
    and always float32; with `config.teacher_config` a teacher is in its place, whose
    continuous features are read. `answer` speaks with people, `generate` and `forward`
    take what `TokenFlowProcessor` makes. Source: arXiv:2412.03069, section 3.3.

    Args:
        config: Sizes of all parts.
    """

    config_class = TokenFlowUnderstandingConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = {"tokenizer", "teacher"}
    _no_split_modules = ["Sight", "TeacherSight", "Projector"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    answer = answering.answer

    def __init__(self, config: TokenFlowUnderstandingConfig) -> None:
        super().__init__(config)
        self.tokenizer = self.teacher = None
        if config.teacher_config is None:
            self.tokenizer = Sight(config.tokenizer_config)
        else:
            self.teacher = TeacherSight(config.teacher_config)
        self.projector = Projector(config.feature_width, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self._processor: TokenFlowProcessor | None = None
        self._home: Any = None  # where a processor may be found
        if config.image_tokenizer is not None:
            self._keys_to_ignore_on_load_missing = {f"^{named.PREFIX}"}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every module as its own constructor made it."""

    # pictures among words

    @property
    def eye(self) -> Sight | TeacherSight:
        """What looks at pictures: the tokenizer, or a teacher in its place."""
        return self.teacher if self.tokenizer is None else self.tokenizer

    def image_features(
        self, pixel_values: Tensor | None = None, indices: Tensor | None = None
    ) -> Tensor:
        """Return what the language model reads of pictures: [n, T, width].

        Args:
            pixel_values: [n, 3, R, R] float in [-1, 1].
            indices: [n, L] int64, their tokens, instead.

        Raises:
            ValueError: Both are given, or neither, or indices to a teacher.
            RuntimeError: The tokenizer is not on a device (offloaded).
        """
        if (pixel_values is None) == (indices is None):
            raise ValueError(
                "image_features: pixel_values or indices must be given, got "
                f"{'neither' if indices is None else 'both'}"
            )
        if indices is not None and self.tokenizer is None:
            raise ValueError(
                "image_features: pixel_values must be given, this model reads a "
                "teacher's continuous features and has no tokens; got indices"
            )
        eye = self.eye
        if eye.device.type == "meta":
            raise RuntimeError(
                "image_features: the tokenizer must be on a device, it is offloaded; "
                "give it one in device_map, or more memory to the first device"
            )
        source = pixel_values if indices is None else indices
        with torch.autocast(eye.device.type, enabled=False):
            source = source.to(eye.device)
            if self.tokenizer is None:
                features = eye(source)
            else:
                features = eye.understanding_features(source, self.config.strategy)
        weight = self.projector[0].weight
        where = features.device if weight.device.type == "meta" else weight.device
        return self.projector(features.to(where, weight.dtype))

    @property
    def context(self) -> int | None:
        """Positions that the language model is made for, None where it names none."""
        return getattr(self.config.text_config, "max_position_embeddings", None)

    def check_context(self, input_ids: Tensor) -> None:
        """Refuse prompts [B, T] that are longer than the language model's context.

        Raises:
            ValueError: They are; the message has the numbers.
        """
        length = input_ids.shape[1]
        if self.context is not None and length > self.context:
            seen = (input_ids == self.config.image_token_id).sum(1).max()
            raise ValueError(
                f"embed: a prompt must have at most {self.context} positions, the "
                f"language model's context, got {length}, {int(seen)} of them of "
                "pictures"
            )

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return the embeddings of words, with pictures in the places of their ids.

        Args:
            input_ids: [B, T] int64; `config.image_token_id` where pictures are.
            pixel_values, indices: As in `image_features`, row after row.

        Returns:
            [B, T, width].

        Raises:
            ValueError: There are more places than features, or fewer, or a prompt is
                longer than the language model's context.
        """
        if not torch.compiler.is_compiling():
            self.check_context(input_ids)
        places = input_ids == self.config.image_token_id
        words = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if pixel_values is None and indices is None:
            if not torch.compiler.is_compiling() and places.any():
                raise ValueError(
                    f"embed: input_ids hold {int(places.sum())} places of pictures, "
                    "pixel_values or indices must be given, got neither"
                )
            return words
        seen = self.image_features(pixel_values, indices).flatten(0, 1)
        if not torch.compiler.is_compiling() and places.sum() != len(seen):
            raise ValueError(
                f"embed: input_ids must have a place for each of {len(seen)} image "
                f"features ({self.config.image_tokens} a picture), got "
                f"{int(places.sum())}"
            )
        places = places[..., None].expand_as(words).to(words.device)
        return words.masked_scatter(places, seen.to(words.device, words.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        indices: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model over words and pictures.

        Args:
            input_ids: [B, T] int64, see `embed`.
            pixel_values: [n, 3, R, R] float in [-1, 1], all pictures of the batch,
                row after row.
            indices: [n, L] int64, their tokens, instead.
            attention_mask: [B, T] with 0 where a row is padded, on either side; or what
                the language model takes besides, such as [B, 1, T, T], and then
                position_ids.
            position_ids: [B, T]; from attention_mask when None.
            past_key_values: The cache of an earlier call.
            inputs_embeds: [B, T, width], what `embed` returned, instead of the first
                three.
            labels: [B, T] int64, −100 where nothing is learned; adds a loss.
            kwargs: What the language model takes.

        Returns:
            The language model's output: `logits` [B, T, vocabulary], `loss`, the cache.

        Raises:
            ValueError: Ids and embeddings are both given, or neither; see `embed`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "forward: input_ids or inputs_embeds must be given, got "
                f"{'neither' if input_ids is None else 'both'}"
            )
        if inputs_embeds is None:
            begun = past_key_values is not None and past_key_values.get_seq_length() > 0
            if begun and pixel_values is None and indices is None:  # words alone
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.embed(input_ids, pixel_values, indices)
        two_sided = attention_mask is not None and attention_mask.ndim == 2
        if position_ids is None and two_sided:
            position_ids = positions(attention_mask)[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    # generation

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Hand pictures to the first step alone: later ones find them in the cache."""
        inputs = super().prepare_inputs_for_generation(
            *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PICTURES:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams, and each row's pictures, however many, with it."""
        pictures = {name: kwargs.pop(name, None) for name in PICTURES}
        if expand_size > 1 and input_ids is not None:
            eye, seen = self.tokenizer, pictures["pixel_values"]
            if seen is not None and eye is not None:  # tokenized once, not per beam
                made = eye.encode(seen.to(eye.device))
                pictures = {"pixel_values": None, "indices": made.indices}
            places = (input_ids == self.config.image_token_id).sum(1)
            counts = (places // self.config.image_tokens).tolist()
            for name, value in pictures.items():
                if value is not None:
                    rows = [r for r in value.split(counts) for _ in range(expand_size)]
                    pictures[name] = torch.cat(rows)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return input_ids, {**kwargs, **pictures}

    # the parts, as transformers asks for them

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of projector and language model."""
        return self.language_model.dtype

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's table of words."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's table of words."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return what turns states into logits."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace what turns states into logits."""
        self.language_model.set_output_embeddings(value)

    @property
    def has_processor(self) -> bool:
        """Whether `processor` is set or may be read beside the weights."""
        return self._processor is not None or self._home is not None

    @property
    def processor(self) -> TokenFlowProcessor:
        """What makes inputs of pictures and words; read beside the weights when needed.

        Raises:
            ValueError: The model was made without one and not read from a folder.
        """
        if self._processor is None:
            if self._home is None:
                raise ValueError(
                    "processor: a TokenFlowProcessor must be set, this model was not "
                    "loaded from a folder that has one"
                )
            self._processor = TokenFlowProcessor.from_pretrained(self._home)
        return self._processor

    @processor.setter
    def processor(self, value: TokenFlowProcessor | None) -> None:
        if value is not None and value.image_token_id != self.config.image_token_id:
            raise ValueError(
                "processor: its <image> must be the model's image_token_id "
                f"{self.config.image_token_id}, got {value.image_token_id}"
            )
        self._processor = value

    # files

    def silence_pictures(self) -> None:
        """Keep the id of pictures, where it has a row as words do, from being said."""
        if self.config.image_token_id < self.config.text_config.vocab_size:
            self.generation_config.suppress_tokens = [self.config.image_token_id]

    from_parts = classmethod(parts.from_parts)
    from_upstream = classmethod(upstream.from_upstream)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> "TokenFlowForUnderstanding":
        """Load a model: a shipped name such as "mini", a folder, or a hub id.

        `dtype=` is that of projector and language model.

        Raises:
            ValueError: The weights are not those of this class and its config; the
                first differing names are in the message. Or the tokenizer that the
                config names makes other tokens.
            OSError: There is no such model, or no such tokenizer.
            RuntimeError: `device_map` has no device for a tokenizer that is named.
        """
        folder = checkpoint.local_folder(name, "understanding")
        made = checkpoint.load_whole(
            super().from_pretrained, folder, name, *args, **kwargs
        )
        model = made[0] if isinstance(made, tuple) else made
        named.fill(model, **kwargs)
        model._home = folder or name
        return made

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config, safetensors and the processor, whole or not at all.

        A tokenizer that `config.image_tokenizer` names stays where it is.

        Args:
            save_directory: Folder, made if it is not there.
            args, kwargs: As in `PreTrainedModel.save_pretrained`; shards are of 5 GB
                if `max_shard_size` says nothing else.
            dtype: Of projector and language model in the files and in the config, from
                where `from_pretrained` takes it; theirs when None.
                Weights of what looks at pictures have it too where that loses nothing.
        """
        if dtype is not None or self.config.image_tokenizer is not None:
            state = kwargs.get("state_dict") or self.state_dict()
            if dtype is not None:
                state = {k: written(k, v, dtype) for k, v in state.items()}
            kwargs["state_dict"] = named.to_save(self.config, state)
        kwargs.setdefault("max_shard_size", SHARD)
        processor = self.processor if self.has_processor else None
        if kwargs.get("push_to_hub"):  # would be named after the folder on the way
            kwargs.setdefault("repo_id", Path(save_directory).resolve().name)
        with checkpoint.replacing(save_directory) as folder, quiet():
            super().save_pretrained(folder, *args, **kwargs)
            if dtype is not None:
                self.config.dtype = dtype
                self.config.save_pretrained(folder)
                self.config.dtype = self.dtype
            if processor is not None:
                processor.save_pretrained(folder)


def written(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as it is saved; what looks at pictures must not change by it."""
    if not weight.is_floating_point():
        return weight
    narrow = weight.to(dtype)
    looks = name.startswith(("tokenizer.", "teacher."))
    return weight if looks and not torch.equal(narrow.to(weight), weight) else narrow


register(
    TokenFlowUnderstandingConfig, TokenFlowForUnderstanding, AutoModelForImageTextToText
)
AutoProcessor.register(TokenFlowUnderstandingConfig, TokenFlowProcessor, exist_ok=True)
