"""The console's endpoints."""

from cluster.auth.access import Access
from cluster.console.fleet_feed import FleetFeed
from cluster.console.fleet_view import FleetView
from cluster.console.pages import PAGES, page
from cluster.gateway.endpoints import Endpoint
from cluster.health.board import HealthBoard
from cluster.metrics.gateway_metrics import GatewayMetrics


def console_endpoints(metrics: GatewayMetrics, board: HealthBoard | None) -> list[Endpoint]:
    """The page, its files, and the fleet that it shows."""
    feed = FleetFeed(metrics.scrapes.gather, metrics.replicas, lambda: board is not None and board.is_leaving)
    files = [
        Endpoint(
            method="GET",
            path=path,
            access=Access.OPEN,
            summary="The console's page" if name.endswith(".html") else f"Part of the console's page: {name}",
            text=media_type.partition(";")[0],
            run=page(path),
        )
        for path, (name, media_type) in PAGES.items()
    ]
    fleet = Endpoint(
        method="GET",
        path="/console/fleet",
        access=Access.ADMIN,
        summary="The live fleet, once a second",
        chunks=(FleetView,),
        run=feed.send,
    )
    return [*files, fleet]
