package adminauth

import "testing"

func TestCertificateConfig(t *testing.T) {
	rules := []Rule{{Role: "admin", Paths: "/.*"}}
	holders := []Holder{{Name: "cn:ann", Role: "admin"}}
	files := []string{"ca.pem"}
	for _, c := range []CertificateConfig{
		{Holders: holders}, {Required: true}, {CRLs: files}, {Authorities: files}, {Authorities: files, Holders: []Holder{{Name: "ann", Role: "admin"}}},
	} {
		if c.Validate(rules) == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	c := CertificateConfig{Authorities: files, Holders: holders}
	if c.Validate(nil) == nil {
		t.Error("holders without rules are taken")
	}
	if err := c.Validate(rules); err != nil {
		t.Error(err)
	}
	if err := DefaultCertificateConfig().Validate(nil); err != nil {
		t.Error(err)
	}
	admits := func(c CertificateConfig, call Call) bool {
		t.Helper()
		auth, err := c.Combine(Bearer{oneToken("x")}, rules)
		if err != nil {
			t.Fatal(err)
		}
		_, err = auth.Admit(t.Context(), call)
		return err == nil
	}
	token, cert, both := Call{Bearer: "x", Path: "/x"}, Call{Certificate: "cn:ann", Path: "/x"}, Call{Bearer: "x", Certificate: "cn:ann", Path: "/x"}
	required := c
	required.Required = true
	if !admits(c, token) || !admits(c, cert) || admits(required, token) || admits(required, cert) || !admits(required, both) || admits(DefaultCertificateConfig(), cert) {
		t.Error("token and certificate are combined wrongly")
	}
}
