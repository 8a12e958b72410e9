//! What somebody takes away of the overlay in a host's kernel is back at once, and what others do there costs nothing.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::names::device;
use ovl_api::wire::{Detach, Repair, Status};
use std::process::Child;
use std::time::{Duration, Instant};
use support::container::Container;
use support::lan::{ETCD, Lan};
use support::{Agent, Host, curl, within};

/// The least time from one regular full pass to the next.
const REGULAR: Duration = Duration::from_secs(44);

/// Two hosts with a container each.
struct Scene {
    lan: Lan,
    agents: Vec<Agent>,
    device: String,
    containers: Vec<Container>,
    /// How long the agent took for each repair, in milliseconds.
    took: std::cell::RefCell<Vec<(String, u64)>>,
}

/// How long a repair may take, in milliseconds, from the kernel's notification on.
const BOUND: u64 = 2000;
/// On a machine that is busy with other things: so many times as long as the simplest repair takes there.
const TIMES: u64 = 20;

impl Scene {
    fn new() -> Scene {
        let mut lan = Lan::new(2);
        lan.start_etcd();
        let agents: Vec<Agent> = lan.hosts.iter().map(|host| host.ready(&["--etcd", ETCD])).collect();
        let network = lan.hosts[0].create("ov", &["10.42.0.0/16", "fd42::/48"]);
        lan.hosts[1].sync();
        let pair = lan.hosts.iter().zip(["one", "two"]);
        let containers: Vec<Container> = pair.map(|(host, name)| Container::new(host, "ov", name)).collect();
        assert!(within(|| containers[0].reaches(&containers[1]) && containers[1].reaches(&containers[0])));
        Scene { lan, agents, device: device(&network.id), containers, took: Vec::new().into() }
    }

    fn host(&self) -> &Host {
        &self.lan.hosts[0]
    }

    /// What the agent answers for in the kernel, without the links' numbers.
    fn state(&self) -> String {
        let Scene { device, .. } = self;
        let veth = &self.containers[0].veth;
        self.host().space.ok(&format!(
            "for dev in {device} {veth}; do ip -d link show $dev | sed 's/^[0-9]*: //'; done; ip -br addr show type vxlan | tr ' ' '\n' | sort; \
             ip -6 -o addr show dev {veth} to fe80::1 | awk '{{print $4}}'; \
             ip route show table local dev {device}; ip -6 route show table local dev {device} | grep -v ^multicast | sort; \
             sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.{device}.forwarding net.ipv4.conf.{veth}.forwarding; \
             ip route show proto 87; ip -6 route show proto 87; \
             ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort; \
             bridge fdb show dev {device} | sort; nft list ruleset"
        ))
    }

    /// So many passes of a kind there were.
    fn passes(&self, kind: &str) -> u64 {
        let metrics = curl(&self.host().socket(), &["http://a/metrics"]).1;
        let begin = format!("weft_overlay_kernel_pass_duration_seconds_count{{kind=\"{kind}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |count| count.parse().unwrap())
    }

    /// Has a full pass done, so that the next regular one is far, and counts those that `meanwhile` brings beside the regular
    /// ones.
    fn full_passes(&self, meanwhile: impl FnOnce()) -> u64 {
        self.host().sync();
        let (before, begun) = (self.passes("full"), Instant::now());
        meanwhile();
        let regular = begun.elapsed().as_secs() / REGULAR.as_secs();
        (self.passes("full") - before).saturating_sub(regular)
    }

    /// Harm is done, and comes to nothing.
    fn comes_back(&self, harm: &str) -> u64 {
        let before = self.state();
        self.full_passes(|| {
            // It may be repaired before one can look.
            let said = self.agents[0].said().len();
            self.host().space.ok(harm);
            let is_repaired = || {
                let said = &self.agents[0].said()[said..];
                said.contains("restored") || said.contains("unasked: removed")
            };
            let back = within(|| is_repaired() && self.state() == before);
            assert!(back, "{harm}: {before}\nnow {}\n{}", self.state(), self.agents[0].said());
            self.took.borrow_mut().push((harm.to_owned(), self.last_repair().took_ms));
            // What is changed again at once is restored after pauses that grow.
            std::thread::sleep(Duration::from_millis(1100));
        })
    }

    fn last_repair(&self) -> Repair {
        self.host().client().status(None).unwrap().repairs.last.unwrap()
    }

    /// No repair took longer than it may.
    fn was_in_time(&self) {
        let bound = BOUND.max(TIMES * self.host().restoring("10.42.0.0/16").as_millis() as u64);
        let took = self.took.borrow();
        let late: Vec<_> = took.iter().filter(|(_, took)| *took > bound).collect();
        assert!(
            !took.is_empty() && late.is_empty(),
            "longer than {bound} ms: {late:?}; {}",
            self.agents[0].said()
        );
    }

    /// Does something again and again until it is dropped.
    fn again_and_again(&self, line: &str) -> Fight {
        let line = format!("while :; do {line}; sleep 0.02; done");
        let mut command = self.host().space.command("sh");
        command.args(["-c", &line]).stderr(std::process::Stdio::null());
        Fight(command.spawn().unwrap())
    }
}

/// Ends with its drop.
struct Fight(Child);

impl Drop for Fight {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_piece_that_somebody_takes_away_is_back_without_a_full_pass() {
    let scene = Scene::new();
    let Scene { device, .. } = &scene;
    let (one, two) = (&scene.containers[0], &scene.containers[1]);
    let mac = format!("$(bridge fdb show dev {device} | awk '/192.0.2.2/ {{print $1}}')");
    let [v4, v6] = one.addresses()[..] else { panic!() };
    for harm in [
        format!("ip route del $(ip route show dev {device} proto 87 | awk '/via/ {{print $1}}')"),
        format!("ip -6 route del $(ip -6 route show dev {device} proto 87 | grep via | awk '{{print $1}}')"),
        "ip route del unreachable 10.42.0.0/16".to_owned(),
        format!(
            "ip route replace $(ip route show dev {device} proto 87 | awk '/via/ {{print $1}}') dev eth0 metric 87"
        ),
        format!("ip route del {v4}; ip -6 route del {v6}"),
        format!("bridge fdb del {mac} dev {device}"),
        format!("bridge fdb replace {mac} dev {device} dst 192.0.2.77"),
        format!("bridge fdb replace {mac} dev {device} dst 192.0.2.2 vni 77"),
        format!("bridge fdb replace {mac} dev {device} dst 192.0.2.2 via lo"),
        format!("ip neigh flush dev {device} nud permanent"),
        format!("ip neigh del {v4} dev {}", one.veth),
        "nft flush ruleset".to_owned(),
        format!("bridge fdb flush dev {device}"),
        "nft flush set inet weft-overlay vteps4".to_owned(),
        "nft flush chain inet weft-overlay forward".to_owned(),
        "nft add rule inet weft-overlay input drop".to_owned(),
        "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
        "sysctl -qw net.ipv6.conf.all.forwarding=0".to_owned(),
    ] {
        assert_eq!(scene.comes_back(&harm), 0, "full passes after {harm}: {}", scene.agents[0].said());
        assert!(within(|| one.reaches(two) && two.reaches(one)), "{harm}");
    }
    assert!(!scene.agents[0].said().contains("again and again"), "{}", scene.agents[0].said());
    scene.was_in_time();
}

#[test]
fn a_device_that_somebody_takes_away_or_changes_is_back_at_once() {
    let scene = Scene::new();
    let Scene { device, .. } = &scene;
    let (one, two) = (&scene.containers[0], &scene.containers[1]);
    for harm in [
        format!("ip link del {device}"),
        // By then it looks as before, and its routes are gone.
        format!("ip link set {device} down; ip link set {device} up"),
        format!("ip addr flush dev {device}"),
        format!("ip link set {device} mtu 1400"),
        format!("ip route flush table local dev {device}"),
        // By its prefix the other node's containers are looked for on the device itself.
        format!(
            "ip addr add 10.42.77.77/16 dev {device}; ip addr add $(ip route show dev {device} proto 87 | awk '/via/ {{print $1}}') dev {device}"
        ),
        format!("ip -6 addr add fd42::77/64 dev {device} nodad"),
        format!(
            "for net in $(ip -6 -o addr show dev {device} | awk '{{print $4}}'); do ip addr change $net dev {device} preferred_lft 0; done"
        ),
        format!(
            "for net in $(ip -o addr show dev {device} | awk '{{print $4}}'); do ip addr change $net dev {device} valid_lft 900 preferred_lft 900; done"
        ),
        format!("ip link set {device} type vxlan ttl 1"),
        format!("ip link set {device} type vxlan remote 192.0.2.99"),
        format!("ip link set {device} protodown on"),
        format!("sysctl -qw net.ipv4.conf.{device}.forwarding=0"),
    ] {
        assert!(scene.comes_back(&harm) > 0, "{harm}");
        assert!(within(|| one.reaches(two) && two.reaches(one)), "{harm}");
    }
    scene.was_in_time();
}

#[test]
fn containers_link_that_somebody_changes_is_back_at_once() {
    let scene = Scene::new();
    let (one, two) = (&scene.containers[0], &scene.containers[1]);
    let veth = &one.veth;
    scene.host().space.ok("ip link add br9 up type bridge");
    for harm in [
        format!("ip link set {veth} down"),
        format!("ip link set {veth} down; ip link set {veth} up"),
        format!("ip link set {veth} name other0"),
        format!("ip link set {veth} group 7"),
        format!("ip link set {veth} address 02:00:00:00:00:77"),
        format!("ip link set {veth} mtu 1280"),
        format!("ip link set {veth} alias other"),
        format!("ip link set {veth} master br9"),
        format!("ip addr del fe80::1/64 dev {veth}"),
        format!("sysctl -qw net.ipv4.conf.{veth}.forwarding=0"),
    ] {
        assert!(scene.comes_back(&harm) > 0, "{harm}");
        assert!(within(|| one.reaches(two) && two.reaches(one)), "{harm}");
    }
    scene.was_in_time();
}

/// What is not the agent's, as the underlay's routes are, is for others to restore.
#[test]
fn all_routes_that_somebody_flushes_are_back_as_far_as_they_are_the_agents() {
    let scene = Scene::new();
    let (one, two) = (&scene.containers[0], &scene.containers[1]);
    scene.comes_back("ip route flush table all");
    scene.was_in_time();
    scene.host().space.ok(
        "ip route replace local 192.0.2.1 dev eth0 table local proto kernel scope host src 192.0.2.1 && \
         ip route replace 192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.1",
    );
    assert!(within(|| one.reaches(two) && two.reaches(one)), "{}", scene.agents[0].said());
}

#[test]
fn what_others_do_costs_no_full_pass() {
    let scene = Scene::new();
    let host = scene.host();
    let passes = scene.full_passes(|| {
        host.space.ok(
            "for n in $(seq 200); do ip route add 198.51.100.$n via 192.0.2.9 proto bgp; done; ip route flush proto bgp; \
             for n in $(seq 200); do echo neigh add 192.0.2.$n lladdr 02:00:00:00:00:09 dev eth0 nud permanent; done | ip -force -batch - || true; \
             ip neigh flush dev eth0 nud permanent; ip link add br9 up type bridge; ip link del br9; \
             nft add table inet other; nft delete table inet other",
        );
    });
    assert_eq!(passes, 0, "{}", scene.agents[0].said());
}

#[test]
fn the_life_of_containers_costs_no_full_pass_and_nothing_is_put_back() {
    let scene = Scene::new();
    let host = scene.host();
    let said = scene.agents[0].said().len();
    let passes = scene.full_passes(|| {
        for number in 0..20 {
            let name = format!("c{number}");
            let container = Container::new(host, "ov", &name);
            // As the plugin does: the link goes first.
            host.space
                .ok(&format!("printf 'link set {0} down\\nlink del {0}\\n' | ip -batch -", container.veth));
            let detach = Detach { network: "ov".into(), container: name, ifname: "eth0".into() };
            host.client().detach(&detach).unwrap();
        }
        // All that was told of it is looked at by then.
        std::thread::sleep(Duration::from_secs(1));
    });
    let said = &scene.agents[0].said()[said..];
    assert_eq!(passes, 0, "{said}");
    assert!(!said.contains("restored"), "{said}");
}

/// The agent's own changes, as other hosts' blocks come and go, are told to it as well.
#[test]
fn what_the_agent_itself_takes_away_stays_away_and_costs_no_full_pass() {
    let mut scene = Scene::new();
    let two = scene.containers.pop().unwrap();
    let passes = scene.full_passes(|| {
        two.detach(&scene.lan.hosts[1]);
        let create = ovl_api::wire::NetworkCreate { name: "more".into(), ..Default::default() };
        scene.host().client().create_network(&create).unwrap();
        let other = Container::new(scene.host(), "more", "other");
        other.detach(scene.host());
        let devices = || scene.host().space.ok("ip -br link show type vxlan").lines().count();
        assert!(within(|| devices() == 1), "{}", scene.agents[0].said());
        std::thread::sleep(Duration::from_secs(1));
    });
    assert_eq!(passes, 0, "{}", scene.agents[0].said());
}

#[test]
fn a_fight_over_a_route_is_fought_more_and_more_seldom_and_said_once() {
    let scene = Scene::new();
    let route = scene.host().space.ok("ip route show proto 87 | grep via");
    let (before, begun) = (scene.passes("told"), Instant::now());
    let fight = scene.again_and_again(&format!("ip route del {}", route.trim()));
    let warned = || scene.agents[0].said().matches("again and again").count();
    assert!(within(|| warned() > 0), "{}", scene.agents[0].said());
    // The regular passes put it back, too.
    let regular = begun.elapsed().as_secs() / REGULAR.as_secs();
    let times = scene.passes("told") - before;
    assert!((5..=8 + regular).contains(&times), "{times} times: {}", scene.agents[0].said());
    drop(fight);
    // Others are not held up by it.
    scene.host().space.ok("ip route del unreachable 10.42.0.0/16");
    assert!(within(|| scene.host().routes().contains("unreachable 10.42.0.0/16")));
    assert!(within(|| scene.host().routes().contains(route.trim())), "{}", scene.agents[0].said());
    assert_eq!(warned(), 1);
}

#[test]
fn a_fight_over_a_device_brings_full_passes_more_and_more_seldom() {
    let scene = Scene::new();
    let mut fight = None;
    let (mut asked, begun) = (0, Instant::now());
    let passes = scene.full_passes(|| {
        fight = Some(scene.again_and_again(&format!("ip link set {} down", scene.device)));
        let warned = || scene.agents[0].said().contains("again and again");
        assert!(within(warned), "{}", scene.agents[0].said());
        asked = begun.elapsed().as_secs() / REGULAR.as_secs();
    });
    assert!((5..=9 + asked).contains(&passes), "{passes} full passes: {}", scene.agents[0].said());
    drop(fight);
    assert!(within(|| scene.containers[0].reaches(&scene.containers[1])), "{}", scene.agents[0].said());
}

#[test]
fn status_names_the_last_repair_and_what_is_changed_again_and_again() {
    let scene = Scene::new();
    let status = || scene.host().client().status(None).unwrap();
    let last = || status().repairs.last.map(|last| last.what).unwrap_or_default();
    assert_eq!(status().problems, Vec::<String>::new());
    scene.host().space.ok("sysctl -qw net.ipv4.ip_forward=0");
    let line = "setting net.ipv4.ip_forward was 0: restored";
    assert!(within(|| last() == line), "{:?}", status());
    assert!(scene.agents[0].said().contains(line), "{}", scene.agents[0].said());
    assert_eq!(status().repairs.fights, Vec::<String>::new());
    let fight = scene.again_and_again("sysctl -qw net.ipv4.ip_forward=0");
    let names = |status: &Status| {
        status.problems.iter().any(|problem| problem.contains("net.ipv4.ip_forward is 0"))
            && status.repairs.fights.iter().any(|what| what.contains("net.ipv4.ip_forward"))
    };
    assert!(within(|| names(&status())), "{:?}", status());
    let said = scene.agents[0].said();
    assert!(said.contains("changes forwarding (net.ipv4.ip_forward"), "{said}");
    let text = scene.host().ovl_agent(&["status"]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\nFight:") && text.contains("\nLast repair:"), "{text}");
    drop(fight);
    let calm = |status: Status| status.problems.is_empty() && status.repairs.fights.is_empty();
    assert!(within(|| calm(status())), "{:?}", status());
}
