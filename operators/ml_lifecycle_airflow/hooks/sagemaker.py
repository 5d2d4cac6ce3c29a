"""Amazon SageMaker behind an Airflow connection of the Amazon provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError

if TYPE_CHECKING:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.adapters.sagemaker import SageMakerApi


class SageMakerApiHook(BaseHook):
    """An Amazon connection (type ``aws``), as the provider's own hooks take it: keys or role, region."""

    conn_name_attr = "aws_conn_id"
    default_conn_name = "aws_default"

    def __init__(self, aws_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.aws_conn_id = aws_conn_id

    def get_conn(self) -> SageMakerApi:
        """The calls that endpoints need."""
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
        from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

        from ml_lifecycle.adapters.sagemaker import SageMakerApi

        runtime = AwsBaseHook(aws_conn_id=self.aws_conn_id, client_type="sagemaker-runtime")
        return SageMakerApi(SageMakerHook(aws_conn_id=self.aws_conn_id).get_conn(), runtime.get_conn())


def check_lake(lake: Lake, conn_id: str) -> None:
    """Whether containers on SageMaker can reach a lake.

    :raises ConnectionIncompleteError: it is not on Amazon S3. Retry: no.
    """
    if not lake.url.startswith("s3://"):
        raise ConnectionIncompleteError(
            f"connection {conn_id!r} leads to {lake.url}; an environment on SageMaker needs a lake at s3://…"
        )
