package config

import (
	"net"
	"slices"

	"github.com/cloister/cloister/broker/asapi"
)

// validateServices checks what is said of services elsewhere.
func (c Config) validateServices(fault func(format string, args ...any)) {
	a := c.Attestation
	switch a.Backend {
	case BackendBuiltin:
		if r := c.ReferenceValues.Remote; r != nil {
			if err := r.Validate(); err != nil {
				fault("reference_values.remote: %w", err)
			}
		}
	case BackendCoCoAS:
		if a.CoCoAS == nil {
			fault("attestation.backend is %q, which needs a table [attestation.coco_as]", a.Backend)
		} else if err := a.CoCoAS.Validate(); err != nil {
			fault("attestation.coco_as: %w", err)
		}
	case BackendTrustAuthority:
		if a.TrustAuthority == nil {
			fault("attestation.backend is %q, which needs a table [attestation.intel_trust_authority]", a.Backend)
		} else if err := a.TrustAuthority.Validate(); err != nil {
			fault("attestation.intel_trust_authority: %w", err)
		}
	default:
		fault("attestation.backend is %.32q, want %q, %q or %q", a.Backend, BackendBuiltin, BackendCoCoAS, BackendTrustAuthority)
	}
	if a.Backend != BackendBuiltin {
		if c.AttestationAPI.GRPCListen != "" || c.AttestationAPI.RESTListen != "" {
			fault("attestation_api has addresses, and attestation.backend = %q judges nothing here", a.Backend)
		}
		if c.ReferenceValues.Remote != nil {
			fault("reference_values.remote has no effect with attestation.backend = %q", a.Backend)
		}
	}
	if a.Backend != BackendCoCoAS && a.CoCoAS != nil {
		fault("[attestation.coco_as] has no effect with attestation.backend = %q", a.Backend)
	}
	if a.Backend != BackendTrustAuthority && a.TrustAuthority != nil {
		fault("[attestation.intel_trust_authority] has no effect with attestation.backend = %q", a.Backend)
	}
}

func (a AttestationAPI) validate(fault func(format string, args ...any)) {
	for _, l := range []struct{ key, v string }{{"attestation_api.grpc_listen", a.GRPCListen}, {"attestation_api.rest_listen", a.RESTListen}} {
		if _, _, err := net.SplitHostPort(l.v); l.v != "" && err != nil {
			fault("%s is %q, want host:port or nothing", l.key, l.v)
		}
	}
	if len(a.Services) == 0 {
		fault("attestation_api.services is empty, want some of %q", asapi.Services())
	}
	for i, s := range a.Services {
		if !slices.Contains(asapi.Services(), s) || slices.Contains(a.Services[:i], s) {
			fault("attestation_api.services has %.32q, want each of %q at most once", s, asapi.Services())
		}
	}
	if a.RESTListen != "" && !slices.Contains(a.Services, asapi.ServiceAttestation) {
		fault("attestation_api.rest_listen is of the service %q, which attestation_api.services lacks", asapi.ServiceAttestation)
	}
}

// insecureServices lists the insecure switches that are on.
func (c Config) insecureServices() []string {
	var out []string
	add := func(table string, switches []string) {
		for _, s := range switches {
			out = append(out, table+"."+s)
		}
	}
	if s := c.Attestation.CoCoAS; s != nil {
		add("attestation.coco_as", s.Insecure())
	}
	if s := c.ReferenceValues.Remote; s != nil {
		add("reference_values.remote", s.Insecure())
	}
	return out
}
