"""The requests and policies for Amazon SageMaker: what AWS's own model of it accepts, and what the program does.

The service model comes with botocore; no test here asks a network for anything.
"""

import functools
import json
import math
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from botocore.waiter import WaiterModel

from robosat_pink import sagemaker
from robosat_pink.config import load_config
from robosat_pink.config.keys import Key
from robosat_pink.container.contract import Container
from robosat_pink.errors import ConfigError
from robosat_pink.losses import LOSSES
from robosat_pink.models import MODELS
from robosat_pink.sample import main as write_sample
from robosat_pink.train import main as train
from robosat_pink.training import metrics
from robosat_pink.training.metrics import EVALUATED, NAMES, PHASES, definitions, log_line

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FOLDER = EXPERIMENTS / "sagemaker"
OPERATIONS = {
    "training-job.json": "CreateTrainingJob",
    "training-job-spot.json": "CreateTrainingJob",
    "predict-job.json": "CreateTrainingJob",
    "evaluate-job.json": "CreateTrainingJob",
    "algorithm.json": "CreateAlgorithm",
}
POLICIES = ("iam-policy.json", "trust-policy.json")


def document(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


@functools.cache
def service() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


def python_pattern(pattern: str) -> str:
    r"""The service's \p{L} and so on, which `re` does not have, as the ASCII characters of that category."""

    def characters(match: re.Match[str]) -> str:
        return "".join(re.escape(chr(n)) for n in range(128) if unicodedata.category(chr(n)).startswith(match[1]))

    return re.sub(r"\\p\{(\w+)\}", characters, pattern)


def breaches(value: Any, shape: Shape, place: str) -> Iterator[str]:
    """What botocore leaves to the service: patterns, enumerations, greatest lengths and numbers."""
    limits = shape.metadata
    size = value if isinstance(value, int) else len(value)
    if size > limits.get("max", math.inf):
        yield f"{place}: {size} is more than {limits['max']}"
    if isinstance(value, str):
        if not re.fullmatch(python_pattern(limits.get("pattern", "(?s:.*)")), value):
            yield f"{place}: {value!r} does not match {limits['pattern']}"
        if value not in limits.get("enum", [value]):
            yield f"{place}: {value!r} is none of {limits['enum']}"
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from breaches(each, shape.members[name], f"{place}.{name}")
    elif shape.type_name == "map":
        for name, each in value.items():
            yield from breaches(name, shape.key, f"{place}.{name}")
            yield from breaches(each, shape.value, f"{place}.{name}")
    elif shape.type_name == "list":
        for number, each in enumerate(value):
            yield from breaches(each, shape.member, f"{place}.{number}")


def refusals(request: Any, shape: Shape) -> list[str]:
    report = ParamValidator().validate(request, shape)
    if report.has_errors():  # then it may not have the form that the rest relies on
        return [report.generate_report()]
    return list(breaches(request, shape, shape.name))


def request_shape(operation: str) -> Shape:
    shape = service().operation_model(operation).input_shape
    assert shape is not None
    return shape


def arguments_of(statement: dict[str, Any], key: str) -> list[str]:
    value = statement[key]
    return value if isinstance(value, list) else [value]


def test_committed_files_are_what_the_command_writes_now(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "robosat_pink.sagemaker", tmp_path / "new"], check=True, timeout=60)
    written = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert set(written) == {*OPERATIONS, *POLICIES}
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == written


def test_metrics_of_an_evaluation_are_found_in_its_log() -> None:
    specification = document("evaluate-job.json")["AlgorithmSpecification"]
    assert [definition["Name"] for definition in specification["MetricDefinitions"]] == [
        f"{EVALUATED}:{name}" for name in NAMES
    ]
    line = log_line(EVALUATED, 3, 3, {name: number / 100 for number, name in enumerate(NAMES)})
    found = [re.search(definition["Regex"], line) for definition in specification["MetricDefinitions"]]
    assert [float(match[1]) for match in found if match] == [number / 100 for number in range(len(NAMES))]


def test_account_and_region_are_put_in_everywhere(tmp_path: Path) -> None:
    assert sagemaker.main([str(tmp_path), "--account", "111122223333", "--region", "eu-central-1"]) == 0
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "123456789012" not in text
    assert "us-west-2" not in text
    assert "111122223333.dkr.ecr.eu-central-1.amazonaws.com/robosat_pink:" in text
    assert "arn:aws:iam::111122223333:role/robosat_pink" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--account", "12345"], "'12345': accepted: 12 digits"),
        (["--region", "us-gov-west-1"], "'us-gov-west-1': accepted: a region of the aws partition"),
        (["--region", "cn-north-1"], "'cn-north-1': accepted: a region of the aws partition"),
    ],
)
def test_wrong_account_and_region_are_refused_in_words(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sagemaker.main([str(tmp_path / "new"), *arguments])
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_folder_that_cannot_be_made_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        sagemaker.main([str(tmp_path / "file")])
    assert f"{tmp_path / 'file'} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", OPERATIONS)
def test_request_is_one_that_the_service_accepts(name: str) -> None:
    assert refusals(document(name), request_shape(OPERATIONS[name])) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"TrainingJobName": "with_underscore"}, "does not match"),
        ({"ResourceConfig": {"InstanceType": "ml.none.xlarge"}}, "is none of"),
        ({"HyperParameters": {f"model.{number}": "1" for number in range(101)}}, "101 is more than 100"),
        ({"OutputDataConfig": {"S3OutputPath": 1}}, "Invalid type"),
        ({"Roll": "typo"}, "Unknown parameter"),
    ],
)
def test_wrong_request_is_found_by_this_test(change: dict[str, Any], told: str) -> None:
    [refusal] = refusals(document("training-job.json") | change, request_shape("CreateTrainingJob"))
    assert told in refusal


def test_jobs_keep_the_parameters_of_planet_snowcover() -> None:
    for name in ("training-job.json", "training-job-spot.json"):
        job = document(name)
        assert job["ResourceConfig"] == {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 150}
        assert job["StoppingCondition"]["MaxRuntimeInSeconds"] == 25200
        assert job["OutputDataConfig"] == {"S3OutputPath": "s3://planet-snowcover-models"}
        assert job["EnableNetworkIsolation"] is False
        [config] = job["InputDataConfig"]
        assert config["ChannelName"] == "config"
        assert config["DataSource"]["S3DataSource"]["S3Uri"].endswith("/")  # or keys that only begin so come too


def test_spot_job_waits_for_longer_than_it_runs_and_keeps_resume_points() -> None:
    job, spot = document("training-job.json"), document("training-job-spot.json")
    assert spot["EnableManagedSpotTraining"] is True
    assert spot["StoppingCondition"]["MaxWaitTimeInSeconds"] > spot["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert spot["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    changed = {key for key in spot if spot[key] != job.get(key)}
    assert changed == {"TrainingJobName", "StoppingCondition", "EnableManagedSpotTraining", "CheckpointConfig"}


def test_events_are_copied_from_where_they_are_written_by_jobs_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGEMAKER_BASE_DIR", raising=False)
    for name in ("training-job.json", "training-job-spot.json"):
        assert document(name)["TensorBoardOutputConfig"]["LocalPath"] == str(Container.here().tensorboard)
    assert "TensorBoardOutputConfig" not in document("predict-job.json")


def test_job_supports_what_the_algorithm_lists() -> None:
    job, training = document("training-job.json"), document("algorithm.json")["TrainingSpecification"]
    assert job["ResourceConfig"]["InstanceType"] in training["SupportedTrainingInstanceTypes"]
    assert job["AlgorithmSpecification"]["TrainingImage"] == training["TrainingImage"]
    assert job["AlgorithmSpecification"]["MetricDefinitions"] == training["MetricDefinitions"]
    channels = {channel["Name"]: channel for channel in training["TrainingChannels"]}
    assert {name: channel["IsRequired"] for name, channel in channels.items()} == {
        "config": True,
        "model": False,
        "imagery": False,
        "mask": False,
    }
    assert job["InputDataConfig"][0]["ContentType"] in channels["config"]["SupportedContentTypes"]


def test_algorithm_lists_no_input_mode_that_create_algorithm_refuses() -> None:
    """The service model has FastFile here, the service does not (boto3 issue 4469). Pipe mode has no files."""
    channels = document("algorithm.json")["TrainingSpecification"]["TrainingChannels"]
    assert {mode for channel in channels for mode in channel["SupportedInputModes"]} == {"File"}


def test_instance_types_are_of_families_that_can_be_had() -> None:
    types = document("algorithm.json")["TrainingSpecification"]["SupportedTrainingInstanceTypes"]
    assert len(types) == len(set(types))
    assert {each.split(".")[1] for each in types} == {"g4dn", "g5", "g6", "m5", "c5"}


def hyperparameters() -> dict[str, dict[str, Any]]:
    found = document("algorithm.json")["TrainingSpecification"]["SupportedHyperParameters"]
    return {each["Name"]: each for each in found}


KEYS = sagemaker.hyperparameter_keys()


def is_refused(name: str, key: Key, value: object) -> bool:
    """Whether the key itself refuses the text, whatever other keys have to say about it."""
    try:
        load_config(EXPERIMENTS / "smoke.yml", {name: str(value)})
    except ConfigError as error:
        lines = [line for line in str(error).splitlines() if line.startswith(f"hyperparameters.json: {name} ")]
        return any("no such key" in line or f": accepted: {key.accepts}" in line for line in lines)
    return False


def test_hyperparameters_are_the_keys_that_stand_once() -> None:
    assert hyperparameters().keys() == KEYS.keys()
    assert {
        *("dataset.train_percent", "dataset.split.from", "model.name", "model.encoder", "model.loss", "model.lr"),
        *("model.batch_size", "model.epochs", "model.tile_size", "model.data_augmentation", "model.decay"),
        *("checkpoint.path", "runtime.seed"),
    } <= KEYS.keys()


@pytest.mark.parametrize(
    ("name", "kind", "limits"),
    [
        ("model.lr", "Continuous", {"MinValue": "5e-324", "MaxValue": "1000.0"}),
        ("model.data_augmentation", "Continuous", {"MinValue": "0.0", "MaxValue": "1.0"}),
        ("dataset.train_percent", "Continuous", {"MinValue": "5e-324", "MaxValue": "0.9999999999999999"}),
        ("model.epochs", "Integer", {"MinValue": "1", "MaxValue": "99999"}),
        ("dataset.split.zoom", "Integer", {"MinValue": "0", "MaxValue": "30"}),
        ("runtime.seed", "Integer", {"MinValue": "0", "MaxValue": "2147483647"}),
        ("model.name", "Categorical", {"Values": list(MODELS)}),
        ("model.loss", "Categorical", {"Values": list(LOSSES)}),
        ("model.schedule", "Categorical", {"Values": ["constant", "cosine"]}),
        ("model.is_deconv", "Categorical", {"Values": ["true", "false"]}),
        ("model.encoder", "FreeText", None),
        ("runtime.loggers", "FreeText", None),
        ("model.pretrained", "FreeText", None),
        ("runtime.workers", "FreeText", None),
    ],
)
def test_type_and_range_of_a_hyperparameter(name: str, kind: str, limits: dict[str, Any] | None) -> None:
    found = hyperparameters()[name]
    assert found["Type"] == kind
    assert found.get("Range") == (limits and {f"{kind}ParameterRangeSpecification": limits})


@pytest.mark.parametrize("name", KEYS)
def test_range_holds_what_the_key_accepts_and_nothing_else(name: str) -> None:
    found, key = hyperparameters()[name], KEYS[name]
    limits = found.get("Range", {}).get(f"{found['Type']}ParameterRangeSpecification", {})
    for value in limits.get("Values", []):
        assert not is_refused(name, key, value)
    if found["Type"] in ("Integer", "Continuous"):
        number, widest = (int, 2**31 - 1) if found["Type"] == "Integer" else (float, sys.float_info.max)
        low, high = number(limits["MinValue"]), number(limits["MaxValue"])
        below = low - 1 if number is int else math.nextafter(low, -math.inf)
        above = high + 1 if number is int else math.nextafter(high, math.inf)
        assert not is_refused(name, key, low)
        assert not is_refused(name, key, high)
        assert is_refused(name, key, below) or abs(low) >= widest
        assert is_refused(name, key, above) or high == widest
    elif found["Type"] == "Categorical":
        assert is_refused(name, key, "none of them")
    else:
        assert "Range" not in found


def test_only_what_is_learnt_by_is_tuned_and_text_is_not() -> None:
    tunable = {name for name, found in hyperparameters().items() if found["IsTunable"]}
    assert tunable == {
        *("model.name", "model.num_filters", "model.is_deconv", "model.loss", "model.batch_size", "model.tile_size"),
        *("model.epochs", "model.lr", "model.data_augmentation", "model.decay", "model.schedule"),
        *("model.patience", "model.batch_norm", "model.symmetries", "model.ema", "model.recipe", "model.pixel_steps"),
    }


def test_no_hyperparameter_is_sent_unasked_over_the_experiment_file() -> None:
    for found in hyperparameters().values():
        assert "DefaultValue" not in found
        assert found["IsRequired"] is False
    assert "or else 2.5e-05." in hyperparameters()["model.lr"]["Description"]


VALUES = {name: (number + 1) / 10 for number, name in enumerate(NAMES)}


def found_in(line: str) -> dict[str, list[str]]:
    """The values each definition finds, without those that find none."""
    found = {each["Name"]: re.findall(each["Regex"], line) for each in definitions()}
    return {name: values for name, values in found.items() if values}


def test_definitions_are_those_of_every_metric_in_every_phase_and_within_limits() -> None:
    names = [each["Name"] for each in definitions()]
    assert names == [f"{phase}:{name}" for phase in PHASES for name in NAMES] + ["train:tiles_per_s"]
    assert len(names) <= 40
    assert all(re.compile(each["Regex"]).groups == 1 for each in definitions())


@pytest.mark.parametrize("phase", PHASES)
def test_every_definition_finds_its_value_and_no_other(phase: str) -> None:
    found = found_in(log_line(phase, 3, 50, VALUES, tiles=7, seconds="1.00", tiles_per_s="7.25"))
    speed = {"train:tiles_per_s": ["7.25"]} if phase == "train" else {}
    assert found == {f"{phase}:{name}": [f"{value:.6f}"] for name, value in VALUES.items()} | speed


@pytest.mark.parametrize("value", [1e-05, -0.25, math.nan, math.inf, -math.inf, 0.0, 1.0, 123456.5])
def test_value_is_found_as_it_is_logged(value: float) -> None:
    found = found_in(log_line("val", 3, 50, dict.fromkeys(NAMES, value), tiles=7))
    assert set(found) == {f"val:{name}" for name in NAMES}
    for [text] in found.values():
        assert float(text) == value or (math.isnan(float(text)) and math.isnan(value))


@pytest.mark.parametrize("text", ["1e-05", "-2.5E+3", "1.5e10", "nan", "-inf", "+0.5", "7", "7."])
def test_value_is_found_however_a_number_may_be_written(text: str) -> None:
    assert found_in(f"phase=val epoch=3 epochs=50 val_loss=0.5 val_mcc={text} val_kappa=0.5")["val:mcc"] == [text]


def test_longer_name_is_not_taken_for_a_metric() -> None:
    assert found_in("epoch=3 best_val_iou=0.5 val_iou_snow=0.5 val_ious=0.5 phase=val tiles_per_s=7.25") == {}


def test_objectives_are_defined_metrics_and_point_the_right_way() -> None:
    found = document("algorithm.json")["TrainingSpecification"]["SupportedTuningJobObjectiveMetrics"]
    directions = {each["MetricName"]: each["Type"] for each in found}
    assert directions["val:iou"] == "Maximize"
    assert directions["val:loss"] == "Minimize"
    assert [name for name, direction in directions.items() if direction == "Minimize"] == ["val:loss"]
    assert directions.keys() <= {each["Name"] for each in definitions()}


@pytest.mark.slow
def test_log_of_a_real_run_has_every_metric_of_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = str(EXPERIMENTS / "smoke.yml")
    write_sample([str(tmp_path / "job"), "--tiles", "3", "--size", "64", "--experiment", experiment])
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "job"))
    assert train(["dataset.split.test_percent=0.25", "runtime.workers=0"]) == 0
    log = capsys.readouterr().out
    results = json.loads((tmp_path / "job/model/metrics.json").read_text())
    for phase, times in (("train", 2), ("val", 2), ("holdout", 1)):
        for name in NAMES:
            [regex] = [each["Regex"] for each in definitions() if each["Name"] == f"{phase}:{name}"]
            found = [float(text) for line in log.splitlines() for text in re.findall(regex, line)]
            assert len(found) == times
            last = results[phase][name]
            assert found[-1] == pytest.approx(math.nan if last is None else last, abs=1e-6, nan_ok=True)
    assert len(found_in(log)["train:tiles_per_s"]) == 2


def test_one_table_names_the_metrics_in_the_log_and_in_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "NAMES", ("dice",))
    assert found_in(log_line("val", 1, 1, {"dice": 0.5})) == {"val:dice": ["0.500000"]}


WITHOUT_RESOURCES = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}  # actions that take "*" only


def statements() -> list[dict[str, Any]]:
    return document("iam-policy.json")["Statement"]


@pytest.mark.parametrize("name", POLICIES)
def test_policy_has_the_form_of_one(name: str) -> None:
    policy = document(name)
    assert policy.keys() == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"
    names = [statement["Sid"] for statement in policy["Statement"]]
    assert len(names) == len(set(names))
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert re.fullmatch("[A-Za-z0-9]+", statement["Sid"])
        for action in arguments_of(statement, "Action"):
            assert re.fullmatch("[a-z0-9]+:[A-Za-z]+", action)


def test_policy_names_resources_except_where_aws_takes_none() -> None:
    for statement in statements():
        everything = set(arguments_of(statement, "Action")) <= WITHOUT_RESOURCES
        for resource in arguments_of(statement, "Resource"):
            assert resource == "*" if everything else re.match("arn:aws:[a-z0-9]+:[^*]*:[^*]*:[^*]+", resource)


def test_policy_allows_what_a_job_does_and_no_more() -> None:
    allowed = {
        (action, resource.removeprefix("arn:aws:s3:::"))
        for statement in statements()
        for action in arguments_of(statement, "Action")
        for resource in arguments_of(statement, "Resource")
        if action.startswith("s3:")
    }
    buckets = [f"planet-snowcover-{name}" for name in ("imagery", "snow", "config", "models")]
    assert allowed == {
        *(("s3:ListBucket", bucket) for bucket in buckets),
        *(("s3:GetObject", f"{bucket}/*") for bucket in buckets),
        ("s3:PutObject", "planet-snowcover-models/*"),
        ("s3:AbortMultipartUpload", "planet-snowcover-models/*"),
        ("s3:DeleteObject", "planet-snowcover-models/checkpoints/*"),
    }
    services = {action.split(":")[0] for statement in statements() for action in arguments_of(statement, "Action")}
    assert services == {"s3", "ecr", "logs", "cloudwatch"}


def test_policy_covers_the_places_that_the_jobs_name() -> None:
    resources = {resource for statement in statements() for resource in arguments_of(statement, "Resource")}
    spot = document("training-job-spot.json")
    places = [
        spot["OutputDataConfig"]["S3OutputPath"],
        spot["CheckpointConfig"]["S3Uri"],
        spot["TensorBoardOutputConfig"]["S3OutputPath"],
        *(channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in spot["InputDataConfig"]),
    ]
    for place in places:
        assert f"arn:aws:s3:::{place.removeprefix('s3://').split('/')[0]}/*" in resources
    assert spot["CheckpointConfig"]["S3Uri"].startswith("s3://planet-snowcover-models/checkpoints/")
    registry, repository = spot["AlgorithmSpecification"]["TrainingImage"].split(":")[0].split("/")
    account, _, _, region, *_ = registry.split(".")
    assert f"arn:aws:ecr:{region}:{account}:repository/{repository}" in resources


def test_role_can_be_taken_by_sagemaker_for_this_account_only() -> None:
    [statement] = document("trust-policy.json")["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert statement["Action"] == "sts:AssumeRole"
    assert statement["Condition"] == {"ArnLike": {"aws:SourceArn": "arn:aws:sagemaker:us-west-2:123456789012:*"}}


PAGE = (FOLDER / "README.md").read_text()


def test_page_lists_every_file_and_no_other() -> None:
    assert set(re.findall(r"\]\(([\w.-]+)\)", PAGE)) == {path.name for path in FOLDER.glob("*.[jp]*")}


def test_page_names_commands_files_and_a_table_that_exist() -> None:
    waiters = WaiterModel(Loader().load_service_model("sagemaker", "waiters-2")).waiter_names
    known = {xform_name(name, "-") for name in service().operation_names}
    known |= {f"wait {xform_name(name, '-')}" for name in waiters}
    used = set(re.findall(r"aws sagemaker ((?:wait )?[a-z-]+)", PAGE))
    assert len(used) == 5
    assert used <= known
    assert {Path(name).name for name in re.findall(r"file://(\S+)", PAGE)} <= {*OPERATIONS, *POLICIES}
    for value in ("`ml.g5.xlarge`", "25200 seconds", "50400 seconds", "150 GB", "`s3://planet-snowcover-models`"):
        assert value in PAGE


def test_channels_of_the_isolated_job_on_the_page_are_ones_the_service_accepts() -> None:
    block = re.search(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    assert block is not None
    job = document("training-job.json")
    job["InputDataConfig"] += json.loads(block[1])
    assert refusals(job | {"EnableNetworkIsolation": True}, request_shape("CreateTrainingJob")) == []
    assert [channel["ChannelName"] for channel in job["InputDataConfig"]] == ["config", "imagery", "mask"]
