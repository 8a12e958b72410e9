//! Another program removes the packet filter's rules (`nft flush ruleset`) while containers run.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CLIENT, Host, SERVER, address, bridge, with};
use serde_json::{Value, json};
use std::process::{Child, Stdio};

/// All of it, as Debian's nftables.service does when it is restarted.
const FLUSH: &str = "nft flush ruleset";
const EVERYTHING: [&str; 5] = [
    FLUSH,
    "nft flush table inet weft",
    "nft delete table inet weft",
    "nft flush chain inet weft guard",
    "nft delete table inet weft && nft delete table bridge weft",
];

/// Container `web` (masqueraded, port 8080 published, its frames checked) and container `db` of a network that lets nothing in.
struct Stage {
    host: Host,
    web: Value,
    map: Value,
    db: Value,
    servers: Vec<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn portmap(result: &Value, port: u16) -> Value {
    json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "prevResult": result,
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}})
}

impl Stage {
    fn new() -> Stage {
        let host = Host::new();
        ["far", "web", "db"].iter().for_each(|name| drop(host.netns(name)));
        host.sh(
            "ip link add wan type veth peer name wan netns far && ip addr add 192.0.2.1/24 dev wan && ip link set wan up && \
             ip -n far addr add 192.0.2.2/24 dev wan && ip -n far link set wan up",
        );
        let conf = with(
            &bridge("web", "10.5.0.0/24"),
            json!({"ipMasq": true, "hairpinMode": true, "macspoofchk": true}),
        );
        let result = host.about("ADD", &conf, "web").run().ok();
        let map = portmap(&result, 8080);
        host.about("ADD", &map, "web").run().ok();
        let web = with(&conf, json!({"prevResult": result}));
        let db = with(
            &bridge("db", "10.6.0.0/24"),
            json!({"bridge": "br1", "ingressPolicy": "same-bridge", "ipMasq": true}),
        );
        let result = host.about("ADD", &db, "db").run().ok();
        let db = with(&db, json!({"prevResult": result}));
        let mut stage = Stage { host, web, map, db, servers: Vec::new() };
        for (netns, port) in [("web", 80), ("db", 80), ("far", 81)] {
            stage.serve(netns, port);
        }
        stage
    }

    fn serve(&mut self, netns: &str, port: u16) {
        let mut command = self.host.command("ip");
        command.args(["netns", "exec", netns, "python3", "-c", SERVER, "0.0.0.0", &port.to_string()]);
        self.servers.push(command.stdout(Stdio::null()).spawn().unwrap());
        self.host.eventually(&format!("ip netns exec {netns} ss -Hltn 'sport = :{port}' | grep -q ."));
    }

    fn get(&self, from: &str, to: &str, port: u16) -> Option<String> {
        let (success, text) =
            self.host.try_sh(&format!("ip netns exec {from} python3 -c '{CLIENT}' {to} {port}"));
        success.then_some(text)
    }

    /// Whether containers have what they were given: by packets, and by CHECK's look at each element and rule.
    #[track_caller]
    fn assert_whole(&self) {
        let rules = || self.host.sh("nft list ruleset");
        assert_eq!(self.get("far", "192.0.2.1", 8080).as_deref(), Some("192.0.2.2"), "{}", rules());
        assert_eq!(self.get("web", "192.0.2.2", 81).as_deref(), Some("192.0.2.1"), "{}", rules());
        assert_eq!(self.get("web", &address(&self.db["prevResult"], 0), 80), None, "{}", rules());
        for (conf, id) in [(&self.web, "web"), (&self.map, "web"), (&self.db, "db")] {
            self.host.about("CHECK", conf, id).run().ok();
        }
    }

    /// The tables, without counters; the order of elements is the kernel's.
    fn tables(&self) -> String {
        self.host.sh(
            "for t in inet bridge; do nft -s list table $t weft 2>/dev/null | tr -d ',' | tr -s ' \\t' '\\n\\n' | sort; done",
        )
    }

    fn detach(&self) {
        for (conf, id) in [(&self.map, "web"), (&self.web, "web"), (&self.db, "db")] {
            self.host.about("DEL", conf, id).run().ok();
        }
        // The rules of a guarded bridge stay as long as it does.
        self.host.sh("ip link del br1");
        self.host.about("DEL", &self.db, "db").run().ok();
        self.host.eventually("! nft list ruleset | grep -q weft && ! ls -d /run/weft");
    }
}

#[test]
fn flushed_rules_come_back_with_the_next_status() {
    let stage = Stage::new();
    let before = stage.tables();
    for removal in EVERYTHING {
        stage.host.sh(removal);
        assert!(stage.get("web", &address(&stage.db["prevResult"], 0), 80).is_some(), "{removal}");
        stage.host.call("STATUS", &stage.web).run().ok();
        assert_eq!(stage.tables(), before, "{removal}");
        stage.assert_whole();
    }
    stage.detach();
}

#[test]
fn flushed_rules_come_back_with_any_call() {
    let stage = Stage::new();
    let host = &stage.host;
    let before = stage.tables();
    let bare = json!({"cniVersion": "1.1.0", "name": "lo", "type": "loopback"});
    let plain = json!({"cniVersion": "1.1.0", "name": "plain", "type": "bridge", "bridge": "br2"});
    ["a", "b", "c"].iter().for_each(|name| drop(host.netns(name)));
    host.about("ADD", &plain, "b").run().ok();
    for (verb, conf, id) in [
        ("ADD", &bare, "a"),
        ("CHECK", &stage.db, "db"),
        ("DEL", &plain, "b"),
        ("ADD", &plain, "c"),
        ("STATUS", &stage.map, "a"),
        ("DEL", &stage.map, "a"),
    ] {
        host.sh(FLUSH);
        host.about(verb, conf, id).run().ok();
        // A DEL leaves it to its child.
        if verb == "DEL" {
            host.eventually("nft list table inet weft && nft list table bridge weft");
        }
        assert_eq!(stage.tables(), before, "{verb} {conf}");
    }
    host.sh(FLUSH);
    let valid = json!([{"containerID": "web", "ifname": "eth0"}]);
    host.call("GC", &with(&stage.web, json!({"cni.dev/valid-attachments": valid}))).run().ok();
    assert_eq!(stage.tables(), before);
    stage.assert_whole();
    host.about("DEL", &plain, "c").run().ok();
    stage.detach();
}

#[test]
fn add_after_a_flush_restores_others_and_itself() {
    let stage = Stage::new();
    let host = &stage.host;
    host.netns("new");
    for removal in
        [FLUSH, "nft delete table inet weft", "nft delete table bridge weft", "nft flush table inet weft"]
    {
        host.sh(removal);
        let conf = with(&stage.web, json!({"prevResult": null}));
        let result = host.about("ADD", &conf, "new").run().ok();
        stage.assert_whole();
        let map = portmap(&result, 8081);
        host.sh(removal);
        host.about("ADD", &map, "new").run().ok();
        stage.assert_whole();
        host.about("CHECK", &with(&conf, json!({"prevResult": result})), "new").run().ok();
        // A port that is taken stays so.
        host.sh(removal);
        let taken = host.about("ADD", &portmap(&result, 8080), "new").run();
        assert_eq!(taken.code(), 104);
        stage.assert_whole();
        host.about("DEL", &map, "new").run().ok();
        host.about("DEL", &conf, "new").run().ok();
        stage.assert_whole();
    }
    stage.detach();
}

#[test]
fn forward_accepts_come_back_with_a_new_chain() {
    let stage = Stage::new();
    stage.host.sh(
        "printf 'flush ruleset\ntable inet fw { chain forward { type filter hook forward priority 0; policy drop; }; }\n' | nft -f -",
    );
    assert_eq!(stage.get("web", "192.0.2.2", 81), None);
    stage.host.call("STATUS", &stage.db).run().ok();
    stage.assert_whole();
    stage.detach();
}

#[test]
fn ended_attachments_are_not_restored() {
    let stage = Stage::new();
    let host = &stage.host;
    host.sh(FLUSH);
    for (conf, id) in [(&stage.map, "web"), (&stage.web, "web")] {
        host.about("DEL", conf, id).run().ok();
    }
    host.eventually("nft list table inet weft");
    host.sh(FLUSH);
    host.call("STATUS", &stage.db).run().ok();
    let tables = stage.tables();
    assert!(tables.contains("db/db/eth0") && !tables.contains("web/web"), "{tables}");
    // Its namespace is gone, and no DEL came.
    host.sh("nft flush ruleset; ip link del $(ip -o link show master br1 | cut -d' ' -f2 | cut -d@ -f1); umount /run/netns/db");
    host.call("STATUS", &stage.db).run().ok();
    assert_eq!(stage.tables(), "");
    host.call("GC", &with(&stage.db, json!({"cni.dev/valid-attachments": []}))).run().ok();
    host.eventually("! ls -d /run/weft");
}

#[test]
fn files_that_are_no_records_are_passed_over() {
    let stage = Stage::new();
    let host = &stage.host;
    let before = stage.tables();
    host.sh(
        "cd /run/weft/rules/*/inet && head -c 60 web:web:eth0.link > x:y:eth0.link && cp db:db:eth0.link a:b:eth0.link && \
         ln -s /dev/zero l:l:eth0.ports && mkfifo f:f:eth0.link && mkdir d:d:eth0.link && head -c 100k /dev/urandom > r && \
         cp web:web:eth0.link o:o:eth0.link && sed -i 's/^owner .*/owner o o eth0/' o:o:eth0.link && chmod 666 o:o:eth0.link && \
         sed 's/^owner .*/owner p p eth0/; s/^masquerade .*/masquerade 0.0.0.0\\/0/' web:web:eth0.link > p:p:eth0.link",
    );
    host.sh(FLUSH);
    let said = host.call("STATUS", &stage.web).run();
    assert!(said.success && said.stderr.contains("p:p:eth0.link"), "{}", said.stderr);
    assert_eq!(stage.tables(), before);
    stage.assert_whole();
}

#[test]
fn add_and_del_need_no_place_for_records() {
    let stage = Stage::new();
    let host = &stage.host;
    host.sh("mount --bind /run/weft /run/weft && mount -o remount,bind,ro /run/weft");
    host.netns("new");
    let conf = with(&stage.web, json!({"prevResult": null}));
    let result = host.about("ADD", &conf, "new").run().ok();
    host.about("ADD", &portmap(&result, 8081), "new").run().ok();
    host.about("DEL", &portmap(&result, 8081), "new").run().ok();
    host.about("DEL", &conf, "new").run().ok();
    for (conf, id) in [(&stage.map, "web"), (&stage.web, "web"), (&stage.db, "db")] {
        host.about("DEL", conf, id).run().ok();
    }
    host.sh("ip link del br1");
    host.about("DEL", &stage.db, "db").run().ok();
    host.eventually("! nft list ruleset | grep weft");
    // What could not be removed is of no attachment when that has gone.
    host.sh("ip netns del web; ip netns del db");
    host.call("STATUS", &conf).run().ok();
    assert_eq!(stage.tables(), "");
}

#[test]
fn loopback_ports_stay_guarded_after_a_flush() {
    let stage = Stage::new();
    let host = &stage.host;
    host.netns("new");
    let conf = with(&stage.web, json!({"prevResult": null}));
    let result = host.about("ADD", &conf, "new").run().ok();
    let map = portmap(&result, 8081);
    host.about("ADD", &map, "new").run().ok();
    assert_eq!(host.sh("cat /proc/sys/net/ipv4/conf/br0/route_localnet"), "1");
    // The one that set it has gone when the rules are flushed.
    host.about("DEL", &stage.map, "web").run().ok();
    host.sh(FLUSH);
    host.call("STATUS", &stage.web).run().ok();
    assert!(host.sh("nft list set inet weft localnet").contains("br0"));
    host.about("DEL", &map, "new").run().ok();
    host.eventually("grep -qx 0 /proc/sys/net/ipv4/conf/br0/route_localnet");
    host.about("DEL", &conf, "new").run().ok();
    stage.detach();
}

#[test]
fn flushes_during_adds_and_dels_lose_and_leave_nothing() {
    let stage = Stage::new();
    let conf = with(&stage.web, json!({"prevResult": null}));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|n| {
                let (stage, conf) = (&stage, &conf);
                scope.spawn(move || {
                    let id = format!("w{n}");
                    stage.host.netns(&id);
                    for _ in 0..8 {
                        let result = stage.host.about("ADD", conf, &id).run().ok();
                        let map = portmap(&result, 9000 + n);
                        stage.host.about("ADD", &map, &id).run().ok();
                        stage.host.about("DEL", &map, &id).run().ok();
                        stage.host.about("DEL", conf, &id).run().ok();
                    }
                    stage.host.about("ADD", conf, &id).run().ok();
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            stage.host.sh("nft flush ruleset; sleep 0.05");
        }
    });
    stage.host.call("STATUS", &stage.web).run().ok();
    stage.assert_whole();
    // The children of the last DELs may be at work yet.
    stage
        .host
        .eventually("test $(nft list table inet weft | grep -o 'web/w[0-9]/eth0' | sort -u | wc -l) = 3");
    stage.host.eventually("! nft list map inet weft ports4 | grep 'web/w[0-9]'");
    for n in 0..3 {
        stage.host.about("DEL", &conf, &format!("w{n}")).run().ok();
    }
    stage.detach();
}

#[test]
fn ports_behind_a_foreign_plugin_come_back_while_its_namespace_is_there() {
    let stage = Stage::new();
    let host = &stage.host;
    host.netns("other");
    let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/32"}]});
    host.about("ADD", &portmap(&result, 8089), "other").run().ok();
    host.sh(FLUSH);
    host.call("STATUS", &stage.web).run().ok();
    assert!(host.sh("nft list map inet weft ports4").contains("8089"));
    host.sh("ip netns del other; nft flush ruleset");
    host.call("STATUS", &stage.web).run().ok();
    assert!(!host.sh("nft list map inet weft ports4").contains("8089"));
    host.about("DEL", &portmap(&result, 8089), "other").run().ok();
    stage.detach();
}
