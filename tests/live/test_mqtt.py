"""Events for home automation: what a broker is given, and what it says when the listener is gone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lamb.live.mqtt import Publisher
from lamb.live.sources import SourceError

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed (the extra `live`)")

BROKER = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
needs_broker = pytest.mark.skipif(BROKER is None, reason="mosquitto is not installed (apt install mosquitto)")
PASSWORD = "s3cret"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Broker:
    def __init__(self, folder, port, users=None):
        self.port, config = port, folder / "mosquitto.conf"
        lines = [f"listener {port} 127.0.0.1", f"allow_anonymous {'false' if users else 'true'}"]
        if users:
            file = folder / "users"
            file.write_text("")
            for name, password in users.items():
                tool = shutil.which("mosquitto_passwd", path=os.environ["PATH"] + ":/usr/bin:/usr/sbin")
                subprocess.run([tool, "-b", str(file), name, password], check=True, capture_output=True)
            os.chmod(file, 0o644)
            lines.append(f"password_file {file}")
        config.write_text("\n".join([*lines, "user root", ""]))
        self.command = [BROKER, "-c", str(config)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(listens)

    def stop(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def broker(tmp_path):
    running = Broker(tmp_path, free_port())
    yield running
    running.stop()


class Subscriber:
    """Home Assistant's part."""

    def __init__(self, port, name=None, password=None):
        self.seen = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        if name:
            self.client.username_pw_set(name, password)
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_message = lambda _, __, m: self.seen.append((m.topic, m.payload.decode(), m.retain))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def last(self, topic):
        return next((payload for name, payload, _ in reversed(self.seen) if name == topic), None)


@needs_broker
def test_events_availability_and_discovery(broker):
    said = []
    subscriber = Subscriber(broker.port)
    publisher = Publisher(f"mqtt://127.0.0.1:{broker.port}/lamb/back%20yard", "rtsp://cam/s", said.append)
    publisher.changed("online")
    publisher.publish({"caption": "A dog barks.", "confidence": 0.9})
    wait_for(lambda: subscriber.last("lamb/back yard/event"))
    assert json.loads(subscriber.last("lamb/back yard/event"))["caption"] == "A dog barks."
    wait_for(lambda: subscriber.last("lamb/back yard/availability") == "online")
    topic = "homeassistant/sensor/lamb_lamb_back_yard/config"
    wait_for(lambda: subscriber.last(topic))
    description = json.loads(subscriber.last(topic))
    assert description["state_topic"] == description["json_attributes_topic"] == "lamb/back yard/event"
    assert description["availability_topic"] == "lamb/back yard/availability"
    assert description["unique_id"] in description["device"]["identifiers"]
    assert "value_json.caption" in description["value_template"]
    publisher.close()
    wait_for(lambda: subscriber.last("lamb/back yard/availability") == "offline")
    late = Subscriber(broker.port)
    wait_for(lambda: late.last("lamb/back yard/availability"))
    retained = {name for name, _, kept in late.seen if kept}
    assert retained == {topic, "lamb/back yard/availability"}, "an old event is not told again"
    assert said == []


@needs_broker
def test_a_broker_that_goes_and_comes_back_misses_nothing(broker):
    said = []
    publisher = Publisher(f"mqtt://127.0.0.1:{broker.port}/x", "mic", said.append)
    publisher.changed("online")
    wait_for(publisher.client.is_connected)
    broker.stop()
    wait_for(lambda: said)
    publisher.publish({"caption": "While it was away."})
    broker.start()
    subscriber = Subscriber(broker.port)
    wait_for(lambda: subscriber.last("x/event"), 40)
    wait_for(lambda: subscriber.last("x/availability") == "online")
    assert json.loads(subscriber.last("x/event"))["caption"] == "While it was away."
    publisher.close()


@needs_broker
def test_a_password_in_the_address_or_in_the_environment(tmp_path, monkeypatch):
    broker = Broker(tmp_path, free_port(), {"me": PASSWORD})
    try:
        said = []
        wrong = Publisher(f"mqtt://me:wrong@127.0.0.1:{broker.port}/x", "mic", said.append)
        wait_for(lambda: said)
        wrong.close()
        assert "check user name and password" in said[0]
        assert "wrong" not in said[0]
        right = Publisher(f"mqtt://me:{PASSWORD}@127.0.0.1:{broker.port}/x", "mic", said.append)
        wait_for(right.client.is_connected)
        right.close()
        monkeypatch.setenv("LAMB_MQTT_PASSWORD", PASSWORD)
        hidden = Publisher(f"mqtt://me@127.0.0.1:{broker.port}/x", "mic", said.append)
        wait_for(hidden.client.is_connected)
        hidden.close()
    finally:
        broker.stop()


@needs_broker
def test_a_listener_that_dies_is_offline(broker, model_folder, tmp_path):
    """kill -9: the broker says so, as the listener asked for when it connected."""
    x = np.tile(np.concatenate([np.random.default_rng(0).standard_normal(16_000) * 0.1, np.zeros(32_000)]), 40)
    soundfile.write(tmp_path / "x.wav", x, 16_000)
    subscriber = Subscriber(broker.port)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lamb", "listen", "-", "--model", str(model_folder)]
    command += ["--mqtt", f"mqtt://127.0.0.1:{broker.port}/lamb"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write((tmp_path / "x.wav").read_bytes()[:400_000])
    process.stdin.flush()
    wait_for(lambda: subscriber.last("lamb/event"), 90)
    assert subscriber.last("lamb/availability") == "online"
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: subscriber.last("lamb/availability") == "offline")


def test_a_broker_that_is_not_there_is_told_without_its_password():
    said = []
    publisher = Publisher(f"mqtt://me:{PASSWORD}@127.0.0.1:{free_port()}/x", "mic", said.append)
    wait_for(lambda: said)
    publisher.publish({"caption": "x"})
    publisher.close()
    assert "cannot be reached" in said[0]
    assert PASSWORD not in said[0]


@pytest.mark.parametrize(
    "address", ["http://host/x", "mqtt://", "host/x", "mqtt://host/a/#", "mqtt://host/+/x", "mqtt://host:port/x"]
)
def test_what_is_no_broker_is_refused(address):
    with pytest.raises(SourceError):
        Publisher(address, "mic", lambda message: None)
