package server

import (
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/cloister/cloister/broker/verifier"
)

// Metrics are counters with upstream's names (kbs-protocol.md section 13). No label holds a path: names of secrets do
// not belong on a page that needs no login.
type Metrics struct {
	registry *prometheus.Registry

	requests                                         prometheus.Counter
	duration, requestSize, responseSize              prometheus.Histogram
	active                                           prometheus.Gauge
	reads, writes, deletes                           prometheus.Counter
	evaluations, approvals, violations, policyErrors prometheus.Counter
	attestations, attestationErrors                  prometheus.Counter
	attestationSuccesses, attestationFailures        *prometheus.CounterVec
	authRequests, authSuccesses, authErrors          prometheus.Counter
	auditErrors, limited                             prometheus.Counter
	pluginRequests, pluginErrors                     *prometheus.CounterVec
	pluginDuration                                   *prometheus.HistogramVec
}

// NewMetrics makes counters at zero. sessions counts those that are live.
func NewMetrics(version string, sessions func() float64) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	per := func(label, name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		m.registry.MustRegister(h)
		return h
	}
	m.requests = counter("kbs_http_requests_total", "HTTP requests under /kbs.")
	m.duration = histogram("kbs_http_request_duration_seconds", "Time to answer a request.", 0.0005, 0.001, 0.005, 0.01, 0.05, 0.5, 1)
	m.requestSize = histogram("kbs_http_request_size_bytes", "Size of request bodies.", 32, 128, 512, 2048, 8192)
	m.responseSize = histogram("kbs_http_response_size_bytes", "Size of response bodies.", 32, 128, 512, 2048, 8192)
	m.active = prometheus.NewGauge(prometheus.GaugeOpts{Name: "kbs_http_active_connections", Help: "Requests under way."})
	m.reads = counter("kbs_resource_reads_total", "Resources released.")
	m.writes = counter("kbs_resource_writes_total", "Resources stored.")
	m.deletes = counter("kbs_resource_deletes_total", "Resources deleted.")
	m.evaluations = counter("kbs_policy_evaluations_total", "Evaluations of the resource policy.")
	m.approvals = counter("kbs_policy_approvals_total", "Resource requests allowed.")
	m.violations = counter("kbs_policy_violations_total", "Resource requests denied.")
	m.policyErrors = counter("kbs_policy_errors_total", "Evaluations of the resource policy that failed.")
	m.attestations = counter("kbs_attestation_requests_total", "Attestations tried.")
	m.attestationErrors = counter("kbs_attestation_errors_total", "Attestations that were refused.")
	m.attestationSuccesses = per("tee_type", "kbs_attestation_successes_total", "Attestations verified.")
	m.attestationFailures = per("tee_type", "kbs_attestation_failures_total", "Attestations whose evidence was refused.")
	m.authRequests = counter("kbs_auth_requests_total", "Challenges asked for.")
	m.authSuccesses = counter("kbs_auth_successes_total", "Challenges given.")
	m.authErrors = counter("kbs_auth_errors_total", "Challenges refused.")
	m.pluginRequests = per("plugin_name", "kbs_plugin_requests_total", "Requests that plugins were asked to answer.")
	m.pluginErrors = per("plugin_name", "kbs_plugin_errors_total", "Requests that plugins failed at; what was refused or is not there is not among them.")
	m.pluginDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kbs_plugin_request_duration_seconds", Help: "Time of plugins to answer, with the policy that is asked before.",
		Buckets: []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1},
	}, []string{"plugin_name"})
	m.registry.MustRegister(m.pluginDuration)
	m.auditErrors = counter("cloister_audit_errors_total", "Audit entries that could not be written.")
	m.limited = counter("cloister_limited_requests_total", "Requests refused because their address asks too often.")
	commit, date := buildInfo()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kbs_build_info", Help: "Always 1; the labels tell the build.",
		ConstLabels: prometheus.Labels{"version": version, "git_hash": commit, "build_date": date},
	})
	info.Set(1)
	m.registry.MustRegister(m.active, info,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "cloister_sessions", Help: "Sessions kept."}, sessions))
	return m
}

func buildInfo() (commit, date string) {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value
			case "vcs.time":
				date = s.Value
			}
		}
	}
	return commit, date
}

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// resource counts a request for a resource that was answered.
func (m *Metrics) resource(method string) {
	switch method {
	case http.MethodGet:
		m.reads.Inc()
	case http.MethodDelete:
		m.deletes.Inc()
	default:
		m.writes.Inc()
	}
}

// plugin counts a request to a plugin, whose name is that of one there is.
func (m *Metrics) plugin(name string, took time.Duration) {
	m.pluginRequests.WithLabelValues(name).Inc()
	m.pluginDuration.WithLabelValues(name).Observe(took.Seconds())
}

// label is the name of a TEE as a label. Where an attestation service elsewhere judges, clients can name any; each would be kept for good.
func label(tee string) string {
	for _, e := range verifier.Builtin(verifier.Config{}) {
		if e.TEE == verifier.Canonical(tee) {
			return e.TEE
		}
	}
	return "other"
}

// observe counts an answered request.
func (m *Metrics) observe(r *http.Request, a *answer, took time.Duration) {
	if !strings.HasPrefix(r.URL.Path, "/kbs/") {
		return
	}
	m.requests.Inc()
	m.duration.Observe(took.Seconds())
	m.requestSize.Observe(float64(max(r.ContentLength, 0)))
	m.responseSize.Observe(float64(a.size))
}

// Register adds collectors of other parts of the broker.
func (m *Metrics) Register(more ...prometheus.Collector) { m.registry.MustRegister(more...) }

// Totals are some of the counters as numbers.
type Totals struct {
	Handshakes, Attested, AttestationsRefused, Released, ResourcesRefused uint64
}

// Totals reads the counters.
func (m *Metrics) Totals() Totals {
	read := func(c prometheus.Collector) uint64 {
		ch := make(chan prometheus.Metric, 64)
		go func() { c.Collect(ch); close(ch) }()
		sum := 0.0
		for one := range ch {
			var d dto.Metric
			if one.Write(&d) == nil {
				sum += d.GetCounter().GetValue()
			}
		}
		return uint64(sum)
	}
	return Totals{
		Handshakes: read(m.authRequests), Attested: read(m.attestationSuccesses), AttestationsRefused: read(m.attestationErrors),
		Released: read(m.reads), ResourcesRefused: read(m.violations),
	}
}
