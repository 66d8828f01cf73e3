package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/broker/console"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/broker/tenant"
)

// openConsole makes the web console part of the root's server.
func (b *Broker) openConsole(r *realm, p realmParts, list *resources.Plugin, resourcePolicies policySet) error {
	parts := console.Parts{
		Log: b.log, Now: b.now, Secure: b.cert != nil, Admins: p.admins, Note: r.server.Note, Caller: r.server.Caller, Remote: b.proxies.Client,
		Decisions: r.decisions, Audit: p.audit, References: r.judge.references,
		AttestationPolicies: r.judge.policies, ResourcePolicies: resourcePolicies,
		Resources: list, Tenants: consoleTenants{p.tenants},
		Counters: func(ctx context.Context) (console.Counters, error) { return b.counters(ctx, r, list) },
	}
	if r.judge.trials != nil {
		parts.DryRun = consoleTrials{r.judge.trials}
	}
	c, err := console.New(parts)
	if err != nil {
		return err
	}
	r.server.Handle("/console", c)
	r.server.Handle("/console/", c)
	return nil
}

// counters is what the console's overview shows.
func (b *Broker) counters(ctx context.Context, r *realm, list *resources.Plugin) (console.Counters, error) {
	t := b.metrics.Totals()
	c := console.Counters{
		Version: b.version, Started: b.started, Sessions: r.sessions.Len(), Insecure: b.cfg.Insecure(),
		Handshakes: t.Handshakes, Attested: t.Attested, AttestationsRefused: t.AttestationsRefused,
		Released: t.Released, ResourcesRefused: t.ResourcesRefused,
	}
	var err error
	if c.Resources, err = list.Count(ctx); err != nil && !errors.Is(err, resources.ErrUnsupported) {
		return c, err
	}
	records, err := r.judge.references.List(ctx)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return c, err
	}
	c.ReferenceValues = len(records)
	return c, nil
}

// consoleTenants are the tenants as the console shows them.
type consoleTenants struct{ server.Tenants }

// List is part of console.Tenants.
func (t consoleTenants) List(ctx context.Context) ([]console.Tenant, error) {
	list, err := t.Tenants.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]console.Tenant, 0, len(list))
	for _, one := range list {
		out = append(out, console.Tenant{
			Name: one.Name, Created: one.Created,
			Quota: console.Quota{Resources: one.Quota.Resources, Bytes: one.Quota.Bytes, RequestsPerSecond: one.Quota.RequestsPerSecond},
			Usage: console.Usage{Resources: one.Usage.Resources, Bytes: one.Usage.Bytes},
		})
	}
	return out, nil
}

// Create is part of console.Tenants.
func (t consoleTenants) Create(ctx context.Context, name string, q console.Quota) (string, error) {
	return t.Tenants.Create(ctx, name, tenant.Quota{Resources: q.Resources, Bytes: q.Bytes, RequestsPerSecond: q.RequestsPerSecond})
}

// consoleTrials makes dry runs for the console.
type consoleTrials struct{ *dryrun.Service }

// DryRun is part of console.DryRun.
func (t consoleTrials) DryRun(ctx context.Context, record decision.Record, policyID, text string) ([]decision.Part, error) {
	result, err := t.Run(ctx, dryrun.Request{RecordID: record.ID, PolicyID: policyID, Policy: text})
	if err != nil {
		return nil, err
	}
	if result.CannotTell != "" {
		return nil, fmt.Errorf("%w: %s", dryrun.ErrRequest, result.CannotTell)
	}
	var parts []decision.Part
	for _, p := range result.Parts {
		if strings.HasSuffix(policyID, "_"+strings.TrimRight(p.Name, "0123456789")) {
			parts = append(parts, p.Part)
		}
	}
	return parts, nil
}
