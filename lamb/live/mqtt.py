"""Events for home automation, over MQTT: `mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC`, with TLS as mqtts://. [O]

    TOPIC/event         every event, as JSON
    TOPIC/availability  "online" or "offline", retained; the broker publishes "offline" if this process dies

Home Assistant finds the sensor automatically: its description is retained at homeassistant/sensor/ID/config, as the
documentation of MQTT discovery requires.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import optional
from .listen import State
from .sources import SourceError, told

PORTS = {"mqtt": 1883, "mqtts": 8883}
PASSWORD = "LAMB_MQTT_PASSWORD"  # environment variable, used instead of one in the address
WAITING = 1000  # events that are kept while the broker cannot be reached
LONGEST = 255  # characters of a state in Home Assistant


class Publisher:
    """Publishes to the broker and topic of `address`; connects in the background, and reconnects after a loss."""

    def __init__(self, address: str, source: str, say: Callable[[str], None]):
        paho = optional("paho.mqtt.client", "MQTT needs paho-mqtt", "live")
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
        """Publish an event, the JSON object that `lamb listen` prints."""
        self.client.publish(f"{self.topic}/event", json.dumps(event), qos=1)

    def changed(self, state: State) -> None:
        """Publish whether the stream is available."""
        self.state = state
        self.client.publish(f"{self.topic}/availability", state, qos=1, retain=True)

    def close(self) -> None:
        """Publish "offline" and disconnect; events that still wait for the broker are lost."""
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
        """The description with which Home Assistant shows the last event as a sensor."""
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
