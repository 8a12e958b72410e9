//! What the agent counts, in Prometheus' text format.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The type of [`Metrics::text`] (OpenMetrics 1.0, which Prometheus reads).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds of durations in seconds: an attachment without a store takes about a millisecond.
const SECONDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

/// What a pass over the kernel compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Everything.
    Full,
    /// What changed.
    Delta,
    /// What somebody took away, as the kernel told.
    Told,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// How many there are of what the agent knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Hosts, this one included.
    pub hosts: usize,
    /// Networks.
    pub networks: usize,
    /// Blocks of all hosts, single addresses among them.
    pub blocks: usize,
    /// Containers' interfaces on this host.
    pub endpoints: usize,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    attaches: Family<Outcome, Counter>,
    detaches: Family<Outcome, Counter>,
    attach_seconds: Histogram,
    detach_seconds: Histogram,
    passes: Family<Kind, Histogram>,
    repair_seconds: Histogram,
    pass_errors: Counter,
    changes: Counter,
    mended: Counter,
    failing: Gauge,
    connected: Gauge,
    revision: Gauge,
    held_back: Gauge,
    held_records: Gauge,
    ready: Gauge,
    hosts: Gauge,
    networks: Gauge,
    blocks: Gauge,
    endpoints: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let seconds = || Histogram::new(SECONDS);
        let mut metrics = Metrics {
            registry: Registry::with_prefix("weft_overlay"),
            attaches: Family::default(),
            detaches: Family::default(),
            attach_seconds: seconds(),
            detach_seconds: seconds(),
            repair_seconds: seconds(),
            passes: Family::new_with_constructor(seconds as fn() -> Histogram),
            pass_errors: Counter::default(),
            changes: Counter::default(),
            mended: Counter::default(),
            failing: Gauge::default(),
            connected: Gauge::default(),
            revision: Gauge::default(),
            held_back: Gauge::default(),
            held_records: Gauge::default(),
            ready: Gauge::default(),
            hosts: Gauge::default(),
            networks: Gauge::default(),
            blocks: Gauge::default(),
            endpoints: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let to = &mut self.registry;
        to.register("attaches", "Attachments that were asked for", self.attaches.clone());
        to.register("detaches", "Attachments that were to end", self.detaches.clone());
        for (name, help, metric) in [
            ("attach_duration", "Time of an attachment", &self.attach_seconds),
            ("detach_duration", "Time of ending an attachment", &self.detach_seconds),
            (
                "repair_duration",
                "Time from another program's change in the kernel to its repair",
                &self.repair_seconds,
            ),
        ] {
            to.register_with_unit(name, help, Unit::Seconds, metric.clone());
        }
        let help = "Time of a pass over the kernel";
        to.register_with_unit("kernel_pass_duration", help, Unit::Seconds, self.passes.clone());
        for (name, help, metric) in [
            (
                "kernel_pass_errors",
                "Passes that did not bring the kernel to all that is wanted",
                &self.pass_errors,
            ),
            ("kernel_changes", "Objects that were added, changed or removed in the kernel", &self.changes),
            ("kernel_drift_mended", "Of these, those that somebody else had changed", &self.mended),
        ] {
            to.register(name, help, metric.clone());
        }
        for (name, help, metric) in [
            (
                "kernel_failing_networks",
                "Networks whose state the kernel does not wholly show",
                &self.failing,
            ),
            ("store_connected", "1 when the store answers", &self.connected),
            ("revision", "The store's revision that the kernel shows", &self.revision),
            ("held_back", "1 when changes are held back because too many hosts vanished", &self.held_back),
            ("held_back_records", "Records of the store that are not in force", &self.held_records),
            ("ready", "1 after the first full synchronisation", &self.ready),
            ("hosts", "Hosts of the cluster", &self.hosts),
            ("networks", "Overlay networks", &self.networks),
            ("blocks", "Blocks and single addresses of all hosts", &self.blocks),
            ("endpoints", "Interfaces of containers on this host", &self.endpoints),
        ] {
            to.register(name, help, metric.clone());
        }
    }

    /// An attachment ended, well or not.
    pub fn attached(&self, ok: bool, seconds: f64) {
        self.attaches.get_or_create(&outcome(ok)).inc();
        self.attach_seconds.observe(seconds);
    }

    /// The end of an attachment did, well or not.
    pub fn detached(&self, ok: bool, seconds: f64) {
        self.detaches.get_or_create(&outcome(ok)).inc();
        self.detach_seconds.observe(seconds);
    }

    /// A pass over the kernel: what it took, how many objects it changed, how many of these were drift, whether it did all.
    pub fn passed(&self, kind: Pass, seconds: f64, changed: usize, mended: usize, complete: bool) {
        let kind = match kind {
            Pass::Full => "full",
            Pass::Delta => "delta",
            Pass::Told => "told",
        };
        self.passes.get_or_create(&Kind { kind }).observe(seconds);
        self.changes.inc_by(changed as u64);
        self.mended.inc_by(mended as u64);
        if !complete {
            self.pass_errors.inc();
        }
    }

    /// What another program changed was restored.
    pub fn repaired(&self, seconds: f64) {
        self.repair_seconds.observe(seconds);
    }

    /// What the agent knows.
    pub fn counted(&self, counts: Counts, failing: usize) {
        let pairs = [
            (&self.hosts, counts.hosts),
            (&self.networks, counts.networks),
            (&self.blocks, counts.blocks),
            (&self.endpoints, counts.endpoints),
            (&self.failing, failing),
        ];
        for (gauge, count) in pairs {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// All of it as text, with how the agent is now.
    pub fn text(&self, status: &ovl_api::wire::Status) -> String {
        self.connected.set(status.connected.into());
        self.revision.set(status.revision);
        self.held_back.set(status.held_back.is_some().into());
        self.held_records.set(i64::try_from(status.held_records.len()).unwrap_or(i64::MAX));
        self.ready.set(status.ready.into());
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

fn outcome(ok: bool) -> Outcome {
    Outcome { result: if ok { "ok" } else { "error" } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.attached(true, 0.0007);
        metrics.attached(false, 3.0);
        metrics.passed(Pass::Full, 0.01, 3, 3, true);
        metrics.passed(Pass::Delta, 0.001, 2, 0, false);
        metrics.repaired(0.02);
        metrics.counted(Counts { hosts: 5, networks: 1, blocks: 9, endpoints: 4 }, 1);
        let status = ovl_api::wire::Status {
            host: "h1".into(),
            version: "0".into(),
            vtep: None,
            store: "local".into(),
            connected: true,
            store_error: None,
            ready: true,
            revision: 77,
            held_back: None,
            held_records: Vec::new(),
            notice: None,
            problems: Vec::new(),
            repairs: ovl_api::wire::Repairs::default(),
        };
        let text = metrics.text(&status);
        for line in [
            "weft_overlay_attaches_total{result=\"ok\"} 1",
            "weft_overlay_attaches_total{result=\"error\"} 1",
            "weft_overlay_attach_duration_seconds_count 2",
            "weft_overlay_kernel_pass_duration_seconds_count{kind=\"full\"} 1",
            "weft_overlay_kernel_changes_total 5",
            "weft_overlay_repair_duration_seconds_count 1",
            "weft_overlay_kernel_drift_mended_total 3",
            "weft_overlay_kernel_pass_errors_total 1",
            "weft_overlay_kernel_failing_networks 1",
            "weft_overlay_store_connected 1",
            "weft_overlay_revision 77",
            "weft_overlay_held_back 0",
            "weft_overlay_held_back_records 0",
            "weft_overlay_ready 1",
            "weft_overlay_hosts 5",
            "weft_overlay_blocks 9",
            "weft_overlay_endpoints 4",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in:\n{text}");
        }
    }
}
