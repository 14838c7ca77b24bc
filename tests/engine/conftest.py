from tests.engine.object_store_server import object_store_server

__all__ = ["object_store_server"]
