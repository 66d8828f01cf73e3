package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/tenant"
	"github.com/cloister/cloister/wire/kbs"
)

// Tenants are those who share the broker; only the root's administrators see them.
type Tenants interface {
	List(ctx context.Context) ([]tenant.Info, error)
	// Create returns the token of the new tenant's administrators; NewToken another one, which ends the first.
	Create(ctx context.Context, name string, q tenant.Quota) (token string, err error)
	NewToken(ctx context.Context, name string) (token string, err error)
	SetQuota(ctx context.Context, name string, q tenant.Quota) error
	Delete(ctx context.Context, name string) error
}

// TenantRequest is the body of POST /cloister/v1/tenants.
type TenantRequest struct {
	Name  string       `json:"name"`
	Quota tenant.Quota `json:"quota"`
}

// TenantToken is the answer to a request that makes a token. It is the only time it can be read.
type TenantToken struct {
	Name       string `json:"name"`
	AdminToken string `json:"admin_token"`
}

func (s *Server) tenantRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /cloister/v1/tenants", s.admin(kindAdmin, s.listTenants))
	mux.HandleFunc("POST /cloister/v1/tenants", s.admin(kindAdmin, s.createTenant))
	mux.HandleFunc("POST /cloister/v1/tenants/{name}/token", s.admin(kindAdmin, s.tenantToken))
	mux.HandleFunc("POST /cloister/v1/tenants/{name}/quota", s.admin(kindAdmin, s.tenantQuota))
	mux.HandleFunc("DELETE /cloister/v1/tenants/{name}", s.admin(kindAdmin, s.deleteTenant))
	mux.HandleFunc("/ns/{name}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, fmt.Sprintf("there is no tenant %.64q", r.PathValue("name"))})
	})
}

// tenantRefusal turns an error about a tenant into an answer.
func tenantRefusal(name string, err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, fmt.Sprintf("there is no tenant %.64q", name)}
	case errors.Is(err, store.ErrExists):
		return refusal{http.StatusConflict, kbs.ErrorInvalidRequestPath, fmt.Sprintf("there is a tenant %q already", name)}
	case errors.Is(err, tenant.ErrName), errors.Is(err, tenant.ErrQuota):
		return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, err.Error()}
	}
	return err
}

func (s *Server) listTenants(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	list, err := s.Tenants.List(r.Context())
	if err != nil {
		return fmt.Errorf("listing tenants: %w", err)
	}
	s.reply(w, r, list)
	return nil
}

// readInto reads a JSON body that has no other members.
func readInto(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, "reading the body: " + err.Error()}
	}
	return nil
}

func (s *Server) createTenant(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "tenant-create"
	var req TenantRequest
	if err := readInto(r, &req); err != nil {
		return err
	}
	entry.Subject = req.Name
	token, err := s.Tenants.Create(r.Context(), req.Name, req.Quota)
	if err != nil {
		return tenantRefusal(req.Name, err)
	}
	s.reply(w, r, TenantToken{req.Name, token})
	return nil
}

func (s *Server) tenantToken(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	name := r.PathValue("name")
	entry.Event, entry.Subject = "tenant-token", name
	token, err := s.Tenants.NewToken(r.Context(), name)
	if err != nil {
		return tenantRefusal(name, err)
	}
	s.reply(w, r, TenantToken{name, token})
	return nil
}

func (s *Server) tenantQuota(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	name := r.PathValue("name")
	entry.Event, entry.Subject = "tenant-quota", name
	var q tenant.Quota
	if err := readInto(r, &q); err != nil {
		return err
	}
	return tenantRefusal(name, s.Tenants.SetQuota(r.Context(), name, q))
}

// deleteTenant removes a tenant and all it kept. The name is asked for twice: nothing brings the secrets back.
func (s *Server) deleteTenant(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	name := r.PathValue("name")
	entry.Event, entry.Subject = "tenant-delete", name
	if r.URL.Query().Get("confirm") != name {
		return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, "want ?confirm=" + name + ": everything the tenant keeps is lost"}
	}
	return tenantRefusal(name, s.Tenants.Delete(r.Context(), name))
}
