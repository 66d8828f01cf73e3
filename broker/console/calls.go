package console

import (
	"fmt"
	"net/http"
	"path"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/resource"
)

// The calls of the API that pages and actions stand for. Access lists of roles name these.

func get(path string) adminauth.Call  { return adminauth.Call{Method: http.MethodGet, Path: path} }
func post(path string) adminauth.Call { return adminauth.Call{Method: http.MethodPost, Path: path} }
func del(path string) adminauth.Call  { return adminauth.Call{Method: http.MethodDelete, Path: path} }

func callStatus() adminauth.Call             { return get("/cloister/v1/status") }
func callDecisions() adminauth.Call          { return get("/cloister/v1/attestations") }
func callDecision(id string) adminauth.Call  { return get("/cloister/v1/attestations/" + id) }
func callResources() adminauth.Call          { return get("/cloister/v1/resources") }
func callPut(p resource.Path) adminauth.Call { return post("/kbs/v0/resource/" + p.String()) }
func callDrop(p resource.Path) adminauth.Call {
	return del("/kbs/v0/resource/" + p.String())
}
func callPolicies() adminauth.Call          { return get("/kbs/v0/attestation-policy") }
func callPutPolicy() adminauth.Call         { return post("/kbs/v0/attestation-policy") }
func callResourcePolicy() adminauth.Call    { return get("/kbs/v0/resource-policy") }
func callPutResourcePolicy() adminauth.Call { return post("/kbs/v0/resource-policy") }
func callReferences() adminauth.Call        { return get("/kbs/v0/reference-value") }
func callRegister() adminauth.Call          { return post("/kbs/v0/reference-value") }
func callRemove(name string) adminauth.Call { return del("/kbs/v0/reference-value/" + name) }
func callGroup(group string) adminauth.Call {
	return del("/cloister/v1/reference-value-groups/" + group)
}
func callTenants() adminauth.Call              { return get("/cloister/v1/tenants") }
func callCreateTenant() adminauth.Call         { return post("/cloister/v1/tenants") }
func callDeleteTenant(n string) adminauth.Call { return del("/cloister/v1/tenants/" + n) }
func callAudit() adminauth.Call                { return get("/cloister/v1/audit") }

// admit asks whether a session's administrator may make a call. A path that the API would not take, because two readers could read
// it differently, is refused here too: a name in it must not reach what a rule did not mean.
func (c *Console) admit(r *http.Request, s *session, call adminauth.Call) (string, error) {
	if call.Path != path.Clean(call.Path) {
		return "", fmt.Errorf("%w: a name in %q is not in plain form", adminauth.ErrDenied, clip(call.Path, 200))
	}
	who := s.who
	who.Method, who.Path = call.Method, call.Path
	return c.Admins.Admit(r.Context(), who)
}
