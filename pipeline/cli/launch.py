"""`minivit launch`: writes manifests for cluster schedulers."""

from __future__ import annotations

import click

from pipeline.cli.paths import UserPath


@click.group("launch")
def group() -> None:
    """Write manifests that run a pipeline under a cluster's scheduler."""


@group.command("kubernetes")
@click.argument("config", type=UserPath())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--image", required=True, help="Image built from docker/Dockerfile, as the nodes pull it.")
@click.option("--claim", required=True, help="ReadWriteMany volume claim for runs and data; all pods mount it.")
@click.option("--cpus", required=True, type=click.IntRange(min=1), help="CPUs per worker pod.")
@click.option("--memory", required=True, help="Memory per worker pod, including shared memory, such as 64Gi.")
@click.option("--gpus", default=0, type=click.IntRange(min=0), help="GPUs per worker pod; default: none.")
@click.option(
    "--pods", type=click.IntRange(min=1), help="Number of worker pods; default: as many as cluster.workers needs."
)
@click.option("--name", help="Name of the RayJob; default: the config's.")
@click.option("--namespace", help="Namespace; default: kubectl's current one.")
@click.option("--queue", help="Kueue local queue that admits the job; default: start at once.")
@click.option(
    "--secret", help="Secret whose keys become environment variables of the run, such as AWS_SECRET_ACCESS_KEY."
)
@click.option("--out", type=UserPath(), help="File to write; default: standard output.")
def kubernetes(
    config: str,
    overrides: tuple[str, ...],
    image: str,
    claim: str,
    cpus: int,
    memory: str,
    gpus: int,
    pods: int | None,
    name: str | None,
    namespace: str | None,
    queue: str | None,
    secret: str | None,
    out: str | None,
) -> None:
    """Write the manifest of a RayJob (KubeRay) that runs or resumes CONFIG.

    minivit launch kubernetes CONFIG --image IMAGE --claim CLAIM --cpus 96 --gpus 8 --memory 512Gi | kubectl apply -f -
    """
    from importlib.metadata import version

    from pipeline.cluster.kubernetes import RayJob, to_manifest
    from pipeline.cluster.pods import pods_for
    from pipeline.cluster.resources import Node
    from pipeline.cluster.volume import check_shareable, expected_data
    from pipeline.config.load import load_config, read_config
    from pipeline.config.yaml_text import to_yaml
    from pipeline.stages.resolve import on_workers

    pipeline, raw = load_config(config, overrides), read_config(config, overrides)
    check_shareable(raw, config)
    pod = Node("", cpus, gpus)
    job = RayJob(
        name=pipeline.name if name is None else name,
        image=image,
        config=to_yaml(raw),
        claim=claim,
        pods=pods_for({key: pipeline.resources(stage) for key, stage in on_workers(pipeline).items()}, pod, pods),
        pod=pod,
        memory=memory,
        ray_version=version("ray"),
        namespace=namespace,
        queue=queue,
        secret=secret,
    )
    manifest = to_manifest(job.documents())
    for data in expected_data(raw):
        click.echo(f"the volume of the claim {claim} must contain {data}", err=True)
    with click.open_file(out or "-", "w") as file:
        file.write(manifest)
