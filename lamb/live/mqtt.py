"""Events for home automation, over MQTT: `mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC`, with TLS as mqtts://. [O]

    TOPIC/event         every event, as JSON
    TOPIC/availability  "online" or "offline", retained; the broker says "offline" if this process dies

Home Assistant finds the sensor by itself: its description is retained at homeassistant/sensor/ID/config, as its
documentation of MQTT discovery asks.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from .listen import State
from .sources import SourceError, told

PORTS = {"mqtt": 1883, "mqtts": 8883}
PASSWORD = "LAMB_MQTT_PASSWORD"  # of the environment, in place of one in the address
WAITING = 1000  # events that are kept while the broker is away
LONGEST = 255  # characters of a state in Home Assistant


class Publisher:
    """Publishes to the broker and topic of `address`; connects in the background, and again after a loss."""

    def __init__(self, address: str, source: str, say: Callable[[str], None]):
        try:
            import paho.mqtt.client as paho
        except ImportError:
            raise SourceError("MQTT needs paho-mqtt", "pip install 'lamb-aac[live]'") from None
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            raise SourceError("--mqtt: the port is not a number") from None
        if parts.scheme not in PORTS or not parts.hostname or re.search("[+#]", address):
            raise SourceError(f"{told(address)}: is not an MQTT address", "give mqtt://HOST/TOPIC, without + and #")
        self.topic = unquote(parts.path.strip("/")) or "lamb"
        self.name, self.source, self.say = told(address), source, say
        self.state: State = "offline"
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.max_queued_messages_set(WAITING)
        self.client.reconnect_delay_set(1, 60)
        self.client.will_set(f"{self.topic}/availability", "offline", qos=1, retain=True)
        if parts.username:
            password = os.environ.get(PASSWORD) or unquote(parts.password or "")
            self.client.username_pw_set(unquote(parts.username), password or None)
        if parts.scheme == "mqtts":
            self.client.tls_set()
        self.client.on_connect, self.client.on_disconnect = self._connected, self._disconnected
        self.client.on_connect_fail = lambda *_: say(f"{self.name}: cannot be reached; trying again")
        self.client.connect_async(parts.hostname, port or PORTS[parts.scheme])
        self.client.loop_start()

    def publish(self, event: dict[str, Any]) -> None:
        """An event, as the JSON object that `lamb listen` prints."""
        self.client.publish(f"{self.topic}/event", json.dumps(event), qos=1)

    def changed(self, state: State) -> None:
        """Whether the stream is there now."""
        self.state = state
        self.client.publish(f"{self.topic}/availability", state, qos=1, retain=True)

    def close(self) -> None:
        """Say good-bye; what waits for a broker that is away is lost."""
        self.state = "offline"
        last = self.client.publish(f"{self.topic}/availability", "offline", qos=1, retain=True)
        if self.client.is_connected():
            last.wait_for_publish(2)
        self.client.disconnect()
        self.client.loop_stop()

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.say(f"{self.name}: {reason}; check user name and password")
            return
        id = "lamb_" + re.sub(r"\W+", "_", self.topic)
        client.publish(f"homeassistant/sensor/{id}/config", json.dumps(self.description(id)), qos=1, retain=True)
        client.publish(f"{self.topic}/availability", self.state, qos=1, retain=True)

    def _disconnected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.say(f"{self.name}: lost ({reason}); trying again")

    def description(self, id: str) -> dict[str, Any]:
        """What Home Assistant must know to show the last event as a sensor."""
        from .. import __version__

        return {
            "name": "Last sound",
            "unique_id": id,
            "state_topic": f"{self.topic}/event",
            "value_template": f"{{{{ value_json.caption[:{LONGEST}] }}}}",
            "json_attributes_topic": f"{self.topic}/event",
            "availability_topic": f"{self.topic}/availability",
            "icon": "mdi:ear-hearing",
            "device": {
                "identifiers": [id],
                "name": f"lamb: {self.topic}",
                "model": self.source,
                "sw_version": __version__,
            },
            "origin": {"name": "lamb", "sw_version": __version__},
        }
