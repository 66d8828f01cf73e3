package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/attestation/cocoas"
	"github.com/cloister/cloister/broker/attestation/trustauthority"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/refstore/remote"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
)

// judge is who verifies and appraises evidence, with what that is done by: this broker, or a service elsewhere.
type judge struct {
	attestation attester
	policies    policies
	references  references
	// trials is nil when guests are judged elsewhere.
	trials *dryrun.Service
	// service is the trust in tokens of a service elsewhere.
	service *token.Trust
}

// policySet is policies that this broker evaluates.
type policySet interface {
	policies
	Get(ctx context.Context, id string) (*rego.Policy, error)
	PutDefault(ctx context.Context, id, text string) error
}

type attester interface {
	Challenge(ctx context.Context, tee string, params json.RawMessage) (*verifier.Challenge, error)
	Evaluate(ctx context.Context, id, policy string, items []attestation.Item) (*attestation.Verdict, error)
}

type policies interface {
	Put(ctx context.Context, id, text string) error
	IDs(ctx context.Context) ([]string, error)
	Text(ctx context.Context, id string) (string, error)
}

type references interface {
	Register(ctx context.Context, message []byte, by string) ([]string, error)
	Lookup(ctx context.Context, name string) (json.RawMessage, error)
	Get(ctx context.Context, name string) (*refstore.Record, error)
	List(ctx context.Context) ([]refstore.Record, error)
	Delete(ctx context.Context, name string) error
	Remove(ctx context.Context, name string, value json.RawMessage) error
	DeleteGroup(ctx context.Context, group string) ([]string, error)
}

// service is an attestation service elsewhere, which all realms use.
type service struct {
	judge
	keyPaths []string
	close    func() error
}

// openService connects to the attestation service that is configured; nil when that is this broker.
func (b *Broker) openService(ctx context.Context) (*service, error) {
	c := b.cfg.Attestation
	switch c.Backend {
	case config.BackendCoCoAS:
		client, err := cocoas.Open(ctx, *c.CoCoAS, cocoas.Options{Now: b.now, Log: b.log})
		if err != nil {
			return nil, err
		}
		return &service{
			judge: judge{attestation: client, policies: cocoas.Policies{Client: client}, references: client.References(), service: client.Trust()},
			close: client.Close,
		}, nil
	case config.BackendTrustAuthority:
		client, err := trustauthority.Open(ctx, *c.TrustAuthority, trustauthority.Options{Now: b.now, Log: b.log})
		if err != nil {
			return nil, err
		}
		return &service{
			judge:    judge{attestation: client, policies: trustauthority.Policies{}, references: elsewhere{}, service: client.Trust()},
			keyPaths: trustauthority.TEEKeyPaths(), close: client.Close,
		}, nil
	}
	return nil, nil
}

// openJudge puts together who judges the guests of a realm.
func (b *Broker) openJudge(ctx context.Context, r *realm, p realmParts) (*judge, error) {
	if b.service != nil {
		j := b.service.judge
		if p.tenants == nil { // what the service keeps is everybody's: a tenant must not change it for others
			j.policies, j.references = elsewhere{}, elsewhere{}
		}
		return &j, nil
	}
	var sets policySet = rego.NewSet(p.db, appraise.Namespace)
	if b.policyDir != nil && p.tenants != nil {
		sets = b.policyDir.Attestation()
	}
	j := &judge{policies: sets}
	j.references = refstore.New(p.db, b.now, time.Duration(b.cfg.ReferenceValues.Lifetime), refstore.WithTrust(b.trust.Load()))
	if c := b.cfg.ReferenceValues.Remote; c != nil && p.tenants != nil {
		client, err := remote.Open(*c, b.now)
		if err != nil {
			return nil, err
		}
		r.closers = append(r.closers, client.Close)
		j.references = client
	}
	settings := map[string]any{
		"insecure_unknown_tpm":   b.cfg.TPM.InsecureUnknownTPM,
		"insecure_no_revocation": b.cfg.SNP.InsecureNoRevocation,
	}
	appraiser, err := appraise.New(ctx, sets, j.references, settings)
	if err != nil {
		return nil, err
	}
	j.trials = &dryrun.Service{Policies: sets, Values: j.references, Records: r.decisions, Verifiers: b.verifiers, Settings: settings}
	j.attestation = &attestation.Service{Verifiers: b.verifiers, Appraiser: appraiser, Tokens: r.signer, Now: b.now}
	return j, nil
}

// errElsewhere is the answer to changes of what this broker does not keep.
var errElsewhere = fmt.Errorf("%w: guests are judged by an attestation service elsewhere, and by what is approved there", errors.ErrUnsupported)

// elsewhere stands for policies and reference values that are not this broker's, or not this tenant's, to change.
type elsewhere struct{}

func (elsewhere) Put(context.Context, string, string) error    { return errElsewhere }
func (elsewhere) Text(context.Context, string) (string, error) { return "", errElsewhere }
func (elsewhere) IDs(context.Context) ([]string, error)        { return nil, errElsewhere }
func (elsewhere) Register(context.Context, []byte, string) ([]string, error) {
	return nil, errElsewhere
}
func (elsewhere) Lookup(context.Context, string) (json.RawMessage, error) { return nil, errElsewhere }
func (elsewhere) Get(context.Context, string) (*refstore.Record, error)   { return nil, errElsewhere }
func (elsewhere) List(context.Context) ([]refstore.Record, error)         { return nil, errElsewhere }
func (elsewhere) Delete(context.Context, string) error                    { return errElsewhere }
func (elsewhere) Remove(context.Context, string, json.RawMessage) error   { return errElsewhere }
func (elsewhere) DeleteGroup(context.Context, string) ([]string, error)   { return nil, errElsewhere }
