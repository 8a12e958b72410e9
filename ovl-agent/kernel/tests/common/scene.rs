//! Host a, which somebody does harm to.

use ovl_api::model::{Network, View};

use super::{TestHost, endpoint, host, kernel_has_vxlan, view};

/// Host a with a container, and two hosts that exist in the view only.
pub struct Scene {
    pub host: TestHost,
    pub view: View,
}

const EVERYTHING: &str = "ip -d link show type vxlan | sed -e 's/^[0-9]*: //' -e 's/qlen.*//'; \
    ip -o link show type veth | sed 's/^[0-9]*: //'; ip -o addr | sed -e 's/^[0-9]*: //' -e 's/valid_lft.*//' -e 's/tentative *//' | sort; \
    ip route show table all proto 87 | sort; ip -6 route show table all proto 87 | sed 's/pref.*//' | sort; \
    ip route show table local dev vx-0123456789ab; ip -6 route show table local dev vx-0123456789ab | grep -v ^multicast | sort; \
    ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort; bridge fdb show dev vx-0123456789ab | sort; \
    nft list table inet weft-overlay || true";

impl Scene {
    pub fn new(network: &Network) -> Scene {
        let segment = Some("192.0.2.0/24");
        let hosts = [
            host("a", "192.0.2.1", segment),
            host("b", "192.0.2.2", segment),
            host("c", "198.51.100.3", None),
        ];
        let blocks = [
            ("10.42.0.0/26", "a"),
            ("10.42.0.64/26", "b"),
            ("10.42.0.128/26", "c"),
            ("10.42.0.9/32", "c"),
            ("fd42::/122", "a"),
            ("fd42::40/122", "b"),
            ("fd42::80/122", "c"),
        ];
        let one = endpoint("one", &["10.42.0.5", "fd42::5"]);
        let networks = std::slice::from_ref(network);
        let view = view("a", &hosts, networks, &blocks, std::slice::from_ref(&one));
        let mut scene = Scene { host: TestHost::new("a", &["192.0.2.1/24"]), view };
        assert!(scene.host.full(&scene.view).is_complete());
        // The kernel adds them in the background, and a busy one takes longer than a pass waits.
        scene.wait_while(
            "for net in $(ip -6 -o addr show type vxlan | awk '{print $4}'); do \
             ip -6 route show table local | grep -qF \"local ${net%/*} \" || echo $net; done | grep .",
        );
        scene.host.attach(network, &one);
        let full = scene.host.full(&scene.view);
        assert!(full.is_empty(), "{full:#?}");
        scene.wait_for_links();
        scene
    }

    /// Waits until the kernel shows no link as about to come up: carrier and link-local addresses come in the background.
    fn wait_for_links(&self) {
        self.wait_while(
            "ip link | grep NO-CARRIER || ip -6 addr show tentative | grep inet6 || \
             ! ip -6 addr show dev vethone | grep inet6 | grep -v fe80::1/",
        );
    }

    /// Waits until a command says nothing more.
    pub fn wait_while(&self, pending: &str) {
        let start = std::time::Instant::now();
        loop {
            let found = self.host.sh(&format!("{{ {pending}; }} && echo pending || true"));
            if !found.contains("pending") {
                return;
            }
            assert!(
                start.elapsed() < std::time::Duration::from_secs(60),
                "links never come up: {}",
                self.all()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub fn all(&self) -> String {
        self.host.sh(EVERYTHING)
    }

    /// Does harm, has it mended, and compares with what was before. Every text of `told` must be in a line of the log, and there
    /// must not be more lines than `most`.
    pub fn mends(&mut self, harm: &str, told: &[&str], most: usize) {
        let before = self.all();
        self.host.sh(harm);
        assert_ne!(self.all(), before, "{harm}: did nothing");
        let changes = self.host.full(&self.view);
        assert!(changes.is_complete(), "{harm}: {changes:#?}");
        pretty_same(&before, &self.all(), harm);
        for text in told {
            let told = changes.lines.iter().any(|line| line.contains(text));
            assert!(told, "{harm}: no line has {text:?}: {:#?}", changes.lines);
        }
        assert!(changes.lines.len() <= most, "{harm}: {:#?}", changes.lines);
        let again = self.host.full(&self.view);
        assert!(again.is_empty(), "{harm}: a second pass found something to do: {again:#?}");
    }
}

pub fn pretty_same(before: &str, after: &str, harm: &str) {
    let without = |a: &str, b: &str| -> Vec<String> {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(str::to_owned).collect()
    };
    let (lost, extra) = (without(before, after), without(after, before));
    assert!(lost.is_empty() && extra.is_empty(), "{harm}: lost {lost:#?}, extra {extra:#?}");
}

pub fn scene(network: &Network, test: impl FnOnce(Scene) + Send) {
    if kernel_has_vxlan() {
        net::testns::in_fresh(|| test(Scene::new(network)));
    }
}
