package broker

import (
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/tenant"
)

// TestTenantNeedsCertificate: where administrators need a certificate besides their token, a tenant's token alone is not enough.
func TestTenantNeedsCertificate(t *testing.T) {
	cfg := config.Default()
	cfg.Admin.Certificates = adminauth.CertificateConfig{
		Authorities: []string{"ca.pem"}, Required: true,
		Holders: []adminauth.Holder{{Name: "cn:ann", Role: "team"}, {Name: "cn:bob", Role: "other"}},
	}
	cfg.Admin.Rules = []config.AdminRule{{Role: "team", Paths: "/ns/team/.*"}, {Role: "other", Paths: "/ns/other/.*"}}
	sum := sha256.Sum256([]byte("token"))
	one := &resident{}
	one.tenant.Store(&tenant.Tenant{Name: "team", TokenHash: sum[:]})
	b := &Broker{cfg: cfg, now: nil}
	admins, err := b.tenantAuthority(one)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		token, certificate string
		fine               bool
	}{{"token", "cn:ann", true}, {"token", "", false}, {"token", "cn:bob", false}, {"", "cn:ann", false}, {"guess", "cn:ann", false}} {
		_, err := admins.Admit(t.Context(), adminauth.Call{
			Bearer: tc.token, Certificate: tc.certificate, Method: "GET", Path: "/ns/team/kbs/v0/reference-value",
		})
		if tc.fine != (err == nil) || !tc.fine && !errors.Is(err, adminauth.ErrDenied) {
			t.Errorf("token %q with certificate %q: %v", tc.token, tc.certificate, err)
		}
	}
}
