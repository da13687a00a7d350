"""Names of secrets, and names of network sizes, counts and switches that resemble them."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from ddpm.errors import InputError
from ddpm.runner.config import redaction
from ddpm.runner.safe_io.secret_names import (
    is_password,
    is_secret,
    is_secret_place,
    is_secret_variable,
)

SECRET = [
    *("key", "wandb_key", "ssh_key", "key_id", "encryptionKey", "accesskey", "API_KEYS", "api.key"),
    *("token", "tokens", "hf_token", "HF_TOKEN_2", "tokenValue", "image_tokens", "mytoken"),
    *("secret", "client_secret", "secretsFile", "AWS_SECRET_ACCESS_KEY", "SECRET_KEY_BASE"),
    *("AWS_ACCESS_KEY_ID", "bearer", "bearer_token", "auth", "basic_auth", "SENTRY_DSN"),
    *("password", "passwords", "dbPassword", "password_hash", "sshpass", "MYSQL_PWD", "db.pwd"),
    *("credentials", "GOOGLE_APPLICATION_CREDENTIALS", "passcode", "per_user_token"),
    *("api_key_per_user", "max_planck_token", "DATABASE_URL", "slack_webhook"),
]
HARMLESS = [
    *("num_tokens", "n_tokens", "numTokens", "max_tokens", "max_new_tokens", "MAX_TOKENS"),
    *("tokens_per_image", "tokensPerPatch", "keys_per_head", "num_keys", "n_key", "max_token"),
    *("key_dim", "keyDim", "key_size", "key_heads", "key_norm", "key_bias", "key_padding_mask"),
    *("token_dim", "tokenDim", "token_size", "token_mixer", "token_type", "token_embedding"),
    *("secret_dim", "password_length", "auth_heads", "bearer_width", "token_count", "pat_size"),
    *("tokenizer", "tokenize", "tokenized", "pretokenized", "tokenisation", "detokenizer"),
    *("TOKENIZERS_PARALLELISM", "secretary", "secretion", "secretive", "author", "authority"),
    *("monkey", "keyboard", "turkey", "keynote", "keep", "keyframes", "hockey", "pattern", "path"),
    *("PWD", "OLDPWD", "compass", "bypass", "forbearance", "dsn_dim", "widths", "public_key"),
    *("sort_key", "image_key", "label_key", "query_key", "key2_dim", "", "_", "0"),
]


@pytest.mark.parametrize("name", SECRET)
def test_secret_names_are_recognised(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_are_not_secret(name):
    assert not is_secret(name)


VALUES = ["8", "-1", "0.5", "1e-3", "true", "false", "null", "[8,16]", "[]", "[true,null,1.5]"]
VALUES += ["8,16", "choice(1,2)", "range(1,4)", "interval(1,4)", "tag(log,interval(1e-3,1))"]
VALUES += ["{a:1,b:[2,3]}", "{a:1},{a:2}", "", "${model.width}", "'${model.width}'", "nan", "???"]


@pytest.mark.parametrize("value", VALUES)
def test_numbers_booleans_and_null_are_accepted_on_the_command_line_under_any_name(value):
    keys = ("model.token", "+model.key", "model.secret", "++auth", "tokens")
    redaction.check_words([f"{key}={value}" for key in keys])


@pytest.mark.parametrize("value", [8, -1, 2.5, 1e-3, True, False, None, [8, 16], [], {"a": 1}, {}])
def test_numbers_booleans_and_null_are_accepted_in_files_under_any_name(value):
    named = {name: value for name in SECRET if "." not in name}
    redaction.check_config(OmegaConf.create({"model": named, "list": [named]}))


@pytest.mark.parametrize("value", ["auto", "learned", 8])
def test_text_is_accepted_under_harmless_names(value):
    redaction.check_config(OmegaConf.create({"model": dict.fromkeys(HARMLESS, value)}))
    redaction.check_words([f"model.{name}={value}" for name in HARMLESS])


TEXT = ["abc", "'123456'", "12ab", "[1,abc]", "{a:abc}", "{a:{b:[abc]}}", "abc,1", "choice(1,abc)"]
TEXT += ["1,2,abc", "glob(*)", "a b", "0x1f", "1_a", "99999999999999999999", "${oc.env:NO,abc}"]
TEXT += ["'${model.width}abc'", "${a}${b}x", "{dim:8,value:abc}"]


@pytest.mark.parametrize(
    "key", ["model.token", "+wandb_api_key", "secret", "x.password", "auth.of"]
)
@pytest.mark.parametrize("value", TEXT)
def test_text_under_a_secret_name_is_refused(key, value):
    with pytest.raises(InputError) as error:
        redaction.check_words([f"{key}={value}"])
    assert str(error.value).startswith(key.lstrip("+"))
    assert "abc" not in str(error.value)


@pytest.mark.parametrize(
    "node",
    [
        {"token": "abc"},
        {"token": ["abc"]},
        {"token": {"value": "abc"}},
        {"tokens": [{"x": "abc"}]},
        {"password": "123456"},
        {"api_key": 10**18},
        {"key": "${other}", "other": "abc"},
        {"key": "${oc.env:HOME}"},
        {"key": "${oc.env:NOT_THERE,abc}"},
        {"a": [{"b": {"hf_token": "abc"}}]},
    ],
)
def test_text_under_a_secret_name_in_a_file_is_refused(node):
    with pytest.raises(InputError, match="named like a secret"):
        redaction.check_config(OmegaConf.create(node))


@pytest.mark.parametrize(
    "node",
    [
        {"key": "${other}", "other": 8},
        {"key": "${other.dim}", "other": {"dim": 8}},
        {"key": "${oc.decode:${oc.env:DIM}}"},
        {"key": "???"},
        {"token": ""},
        {"token": {"dim": 8, "init": "zeros", "type": "learned", "norm": "rms"}},
        {"tokens": [{"dim": 8, "kind": "cls"}]},
        {"key": "${no_such_key}"},  # reported later
    ],
)
def test_references_to_numbers_and_network_settings_are_accepted(node, monkeypatch):
    monkeypatch.setenv("DIM", "16")
    redaction.check_config(OmegaConf.create(node))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("password", digits) for digits in ("123456", "0", "12.5", "1e5")),
        *(("+db_password", "20260101"), ("api_key", "12345678"), ("MYSQL_PWD", "1234")),
        *(("x.secret_key", "5"), ("passphrase", "[1,2]"), ("private_key", "1,2")),
        ("+hydra.job.env_set.HF_TOKEN", "123456"),
        ("+hydra.job.env_set", "{TOKEN:123456}"),
    ],
)
def test_digits_under_password_names_are_refused(key, value):
    with pytest.raises(InputError, match="named like a secret"):
        redaction.check_words([f"{key}={value}"])


@pytest.mark.parametrize("value", ["null", "true", "false", ""])
def test_empty_null_and_boolean_passwords_are_accepted(value):
    redaction.check_words([f"password={value}"])


@pytest.mark.parametrize("name", ["password", "PGPASSWORD", "apikey", "my_api_key", "db_pwd2"])
def test_password_names_are_recognised(name):
    assert is_password(name)
    assert is_secret(name)


@pytest.mark.parametrize("name", ["token", "num_tokens", "key", "PWD", "secret", "key_dim"])
def test_other_names_are_not_passwords(name):
    assert not is_password(name)


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("wandb.token.value", True),
        ("token.0", True),
        ("credentials.user", True),
        ("token.dim", False),
        ("auth.type", False),
        ("model.num_tokens", False),
        ("model.tokens.0.dim", False),
        ("model.width", False),
    ],
)
def test_nested_keys_are_secret_by_their_path(key, secret):
    assert is_secret_place(key.split(".")) is secret


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "hf_abcdefgh", True),
        ("HF_TOKEN", "12345678", False),
        ("HF_TOKEN", "1" * 40, True),
        ("HF_TOKEN", "false", False),
        ("HF_TOKEN", None, True),
        ("NUM_TOKENS", "text of any kind", False),
        ("TOKENIZERS_PARALLELISM", "somewhere", False),
        ("DB_PASSWORD", "12345678", True),
        ("WANDB_API_KEY", "1234567890", True),
        ("PWD", "/somewhere/else", False),
    ],
)
def test_secret_variables_are_recognised_by_name_and_value(name, value, secret):
    assert is_secret_variable(name, value) is secret


def test_values_of_secret_variables_are_refused(monkeypatch):
    monkeypatch.setenv("SIZE_TOKEN", "12345678")
    monkeypatch.setenv("NUM_TOKENS", "20260101")
    monkeypatch.setenv("KEY_DIM", "/shared/pictures")
    redaction.check_words(["seed=12345678", "seed=20260101", "data_dir=/shared/pictures"])
    redaction.check_config(OmegaConf.create({"seed": 12345678, "notes": "x 12345678 y"}))
    monkeypatch.setenv("DB_PASSWORD", "12345678")
    redaction.check_config(OmegaConf.create({"seed": 12345678}))
    with pytest.raises(InputError, match="DB_PASSWORD"):
        redaction.check_config(OmegaConf.create({"notes": "x 12345678 y"}))
    with pytest.raises(InputError, match="DB_PASSWORD"):
        redaction.check_words(["seed=12345678"])


def test_numbers_may_be_read_from_variables_with_secret_names(monkeypatch):
    monkeypatch.setenv("HF_TOKENS", "8")
    cfg = OmegaConf.create({"model": {"width": "${oc.decode:${oc.env:HF_TOKENS}}"}})
    redaction.check_config(cfg)
    assert redaction.env_values(cfg) == []
    monkeypatch.setenv("HF_TOKENS", "hf_abc")
    with pytest.raises(InputError, match="HF_TOKENS"):
        redaction.check_config(cfg)
    with pytest.raises(InterpolationResolutionError, match="HF_TOKENS"):
        redaction.env_values(cfg)
