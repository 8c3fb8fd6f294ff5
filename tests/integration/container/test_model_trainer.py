"""The SageMaker Python SDK, version 3: its ModelTrainer drives the image, and sends the requests of the repository."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from container.clients import python_with, run_client
from container.engine import ROOT, SMOKE, docker
from robosat_pink.sample import write_folder

pytestmark = pytest.mark.docker  # a test of the requests needs no engine, but the same environment, which takes long

# sagemaker 3.27 takes 1 GB, and minutes of a CPU to install, most of it for serving and MLflow. These packages are what
# its trainers and tuners import.
SDK = ("sagemaker-train==1.27.0", "sagemaker-core==2.27.0")
IMPORTED = (
    "attrs boto3>=1.43.90,<2 cloudpickle graphene<4 importlib-metadata<7 jsonschema<5 omegaconf packaging pandas "
    "platformdirs<5 pydantic<3 pytz PyYAML<7 requests<3 rich<15 scipy six"
)
JOBS = ROOT / "experiments/sagemaker"
HYPERPARAMETERS = {
    "model.epochs": 1,
    "model.name": "albunet",
    "model.encoder": "resnet18",
    "model.ema": None,
    "model.loss": {"lovasz": 0.5, "cross_entropy": 1},
}
LOCAL = """
import json, sys
image, hyperparameters, folder, page = sys.argv[1:]
sys.path.insert(0, folder)
exec(page.replace('"robosat_pink"', repr(image)))
jobs.train_here(image, "runs/one-host", channels, hyperparameters=json.loads(hyperparameters))
"""
PAGE = (JOBS / "README.md").read_text()
ON_AWS, HERE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(tmp_path_factory.mktemp("sdk"), ("--no-deps", *SDK), IMPORTED.split())


@pytest.fixture(scope="module")
def recorded(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each job of jobs.py sends to AWS."""
    written = tmp_path_factory.mktemp("recorded") / "requests.json"
    ran = run_client(sdk, Path(__file__).with_name("recorded_jobs.py"), written, ON_AWS, folder=JOBS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(written.read_text())


@pytest.fixture(scope="module")
def local(image: str, sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder in which trainings on one and on two hosts and a map have ended, and their log."""
    folder = tmp_path_factory.mktemp("local")
    write_folder(folder / "job", SMOKE, tiles=2, size=64)
    ran = run_client(sdk, "-c", LOCAL, image, json.dumps(HYPERPARAMETERS), JOBS, HERE, folder=folder)
    left = docker("ps", "--all", "--quiet", "--filter", f"ancestor={image}", "--filter", "name=_algo-").stdout
    docker("rm", *left.split())  # what has ended; compose leaves it
    assert ran.returncode == 0, ran.stdout + ran.stderr
    yield folder / "runs", ran.stdout + ran.stderr
    shutil.rmtree(folder)


def document(name: str) -> dict[str, Any]:
    return json.loads((JOBS / name).read_text())


def output(request: dict[str, Any]) -> dict[str, str]:
    """Where a request puts the results, with the compression that the SDK writes out. It is the service's default."""
    return request["OutputDataConfig"] | {"CompressionType": "GZIP"}


def test_page_sends_the_requests_of_the_files_with_the_model_of_the_training(recorded: dict[str, Any]) -> None:
    training, prediction, _ = recorded["page"]
    expected = document("training-job.json")
    expected |= {
        "OutputDataConfig": output(expected),
        "EnableManagedSpotTraining": False,
        "HyperParameters": {"model.epochs": "20"},
    }
    assert re.fullmatch(rf"{expected.pop('TrainingJobName')}-\d{{14}}", training.pop("TrainingJobName"))
    assert training == expected
    expected = document("predict-job.json")
    model = expected["InputDataConfig"][1]["DataSource"]["S3DataSource"]
    model["S3Uri"] = "s3://models/tuolumne-1-20261101/output/model.tar.gz"
    assert re.fullmatch(rf"{expected.pop('TrainingJobName')}-\d{{8}}-\d{{6}}", prediction.pop("TrainingJobName"))
    assert prediction == expected


def test_trainer_sends_the_spot_request_of_the_file(recorded: dict[str, Any]) -> None:
    sent, expected = recorded["spot"], document("training-job-spot.json")
    assert sent.pop("HyperParameters") == {
        "model.epochs": "20",
        "model.loss": '{"dice": 0.5, "focal": 1}',
        "model.ema": "null",
    }
    assert re.fullmatch(rf"{expected.pop('TrainingJobName')}-\d{{14}}", sent.pop("TrainingJobName"))
    assert sent == expected | {"OutputDataConfig": output(expected)}


def test_tuner_sends_what_the_algorithm_lists_with_the_trainings_of_the_request(recorded: dict[str, Any]) -> None:
    _, _, sent = recorded["page"]
    tuning, training = sent["HyperParameterTuningJobConfig"], sent["TrainingJobDefinition"]
    assert tuning["HyperParameterTuningJobObjective"] == {"Type": "Maximize", "MetricName": "val:iou"}
    assert tuning["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 8, "MaxParallelTrainingJobs": 2}
    ranges = tuning["ParameterRanges"]
    assert ranges["ContinuousParameterRanges"] == [
        {"Name": "model.lr", "MinValue": "1e-05", "MaxValue": "0.001", "ScalingType": "Auto"}
    ]
    assert ranges["CategoricalParameterRanges"] == [{"Name": "model.loss", "Values": ["lovasz", "dice"]}]
    request, algorithm = document("training-job.json"), document("algorithm.json")["TrainingSpecification"]
    for field in ("MetricDefinitions", "TrainingImage"):
        assert training["AlgorithmSpecification"][field] == algorithm[field]
    assert training["OutputDataConfig"] == output(request)
    for field in ("RoleArn", "InputDataConfig", "ResourceConfig", "StoppingCondition"):
        assert training[field] == request[field]


def test_tuning_job_has_a_name_that_the_service_accepts(recorded: dict[str, Any]) -> None:
    name = recorded["page"][2]["HyperParameterTuningJobName"]
    assert re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}", name)


def test_tuner_writes_hyperparameters_as_python_does(recorded: dict[str, Any]) -> None:
    """test_sections.py has that they are read."""
    expected = {"model.epochs": "20", "model.loss": "{'dice': 0.5, 'focal': 1}", "model.ema": "None"}
    assert recorded["static"] == expected


def test_tuner_does_not_leave_out_network_isolation_in_silence(recorded: dict[str, Any]) -> None:
    assert "isolated.json: EnableNetworkIsolation = true: the SDK's tuner leaves it out" in recorded["isolated"]


def test_hyperparameter_that_cannot_be_tuned_is_refused_in_words(recorded: dict[str, Any]) -> None:
    told = "ValueError: model.encoder cannot be tuned; algorithm.json accepts model.name, "
    assert recorded["not tunable"].startswith(told)


def test_field_of_a_request_that_would_not_be_sent_is_refused(recorded: dict[str, Any]) -> None:
    assert "with_a_vpc.json: VpcConfig would not be sent; accepted: AlgorithmSpecification, " in recorded["vpc"]


def test_hyperparameters_and_environment_of_a_request_are_sent(recorded: dict[str, Any]) -> None:
    assert recorded["isolated job"]["EnableNetworkIsolation"] is True
    assert recorded["isolated job"]["Environment"] == {"AWS_NO_SIGN_REQUEST": "YES"}
    assert recorded["isolated job"]["HyperParameters"] == {"model.epochs": "20", "model.lr": "0.001"}


def test_sdk_refuses_the_role_of_the_policy_unless_told_not_to_look(recorded: dict[str, Any]) -> None:
    """The policy allows what a job does. The SDK asks for the permissions of a job in a VPC as well, and no others."""
    [missing] = re.findall("Missing permissions: (.*)", recorded["role"])
    assert {action.split(":")[0] for action in missing.split(", ")} == {"ec2"}


def test_defaults_of_the_sdk_are_too_small_for_a_training(recorded: dict[str, Any]) -> None:
    assert recorded["bare"]["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    assert recorded["bare"]["ResourceConfig"]["VolumeSizeInGB"] == 30
    assert recorded["bare"]["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"  # without a GPU


@pytest.mark.parametrize(("folder", "hosts"), [("one-host", "algo-1"), ("two-hosts", "algo-1, algo-2")])
def test_training_in_local_mode_leaves_everything_but_resume_points(
    local: tuple[Path, str], folder: str, hosts: str
) -> None:
    runs, log = local
    found = {path.name for path in (runs / folder / "artifacts/model").iterdir()}
    weights = {"checkpoint-00001-of-00001.pth", "best.pth"}
    assert {*weights, "train_ids.txt", "test_ids.txt", "config.yml", "MODEL_CARD.md"} <= found
    assert (runs / folder / "artifacts/output/data/report.html").exists()
    assert f"host algo-1 of {hosts}; checkpoints: None" in log
    assert log.count("phase=val epoch=1 epochs=1 val_loss=") == 2  # of the trainings together


def test_nothing_of_a_local_job_s_input_stays(local: tuple[Path, str]) -> None:
    runs, _ = local
    kept = {"artifacts", "compressed_artifacts", "docker-compose.yaml", "model", "output"}
    assert {path.name for path in (runs / "one-host").iterdir()} == kept


def test_map_in_local_mode_is_made_with_the_model_of_a_training(local: tuple[Path, str]) -> None:
    runs, log = local
    found = runs / "map/artifacts/output/data"
    assert (found / "predictions/20180528_sierra.tif").exists()
    assert (found / "map.html").exists()
    assert f"{found / 'map.html'}\n" in log
