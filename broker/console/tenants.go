package console

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strconv"
)

type tenantsBody struct {
	List []Tenant
	Form tenantForm
	// Created and Token are shown once, after a tenant was made.
	Created, Token string
	MayCreate      bool
}

// tenantForm is what was typed in.
type tenantForm struct{ Name, Resources, MiB, Requests string }

var tenantName = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\z`)

func (c *Console) tenants(v *visit) error { return c.showTenants(v, http.StatusOK, "", tenantsBody{}) }

func (c *Console) showTenants(v *visit, code int, problem string, b tenantsBody) error {
	var err error
	if b.List, err = c.Tenants.List(v.r.Context()); err != nil {
		return err
	}
	b.MayCreate = v.may(callCreateTenant())
	return v.showWith(code, "tenants", "Tenants", root+"tenants", problem, b)
}

// quota reads the numbers of the form; an empty one is no limit.
func (f tenantForm) quota() (q Quota, err error) {
	number := func(what, text string, most float64) (float64, error) {
		if text == "" {
			return 0, nil
		}
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || n < 0 || n > most {
			return 0, fmt.Errorf("%s is %q, want a number from 0 (no limit) to %.0f", what, clip(text, 32), most)
		}
		return n, nil
	}
	resources, err := number("the number of resources", f.Resources, 1e9)
	if err != nil {
		return q, err
	}
	if resources != math.Trunc(resources) {
		return q, fmt.Errorf("the number of resources is %q, want a whole number", clip(f.Resources, 32))
	}
	mib, err := number("the size", f.MiB, 1<<20)
	if err != nil {
		return q, err
	}
	q.Resources, q.Bytes = int(resources), int64(mib*(1<<20))
	q.RequestsPerSecond, err = number("the number of requests", f.Requests, 1e6)
	return q, err
}

func (c *Console) createTenant(v *visit) (*plan, error) {
	var f tenantForm
	var err error
	for name, to := range map[string]*string{"name": &f.Name, "resources": &f.Resources, "mib": &f.MiB, "requests": &f.Requests} {
		if *to, err = field(v.r, name, 128); err != nil {
			return nil, err
		}
	}
	again := func(v *visit, err error) error {
		if aerr := v.need(callTenants()); aerr != nil {
			return aerr
		}
		return c.showTenants(v, http.StatusUnprocessableEntity, "No tenant was made: "+err.Error()+".", tenantsBody{Form: f})
	}
	q, err := f.quota()
	if err == nil && !tenantName.MatchString(f.Name) {
		err = fmt.Errorf("a name has up to 128 letters, digits, '_', '-' and inner '.'")
	}
	if err != nil {
		return &plan{call: callCreateTenant(), show: func(v *visit) error { return again(v, err) }}, nil
	}
	var token string
	return &plan{
		call: callCreateTenant(), event: "tenant-create", subject: f.Name, failed: again,
		do: func(ctx context.Context, _ string) error {
			var err error
			token, err = c.Tenants.Create(ctx, f.Name, q)
			return err
		},
		// The token is not kept for another page: it is in this answer and nowhere else.
		show: func(v *visit) error {
			return v.show("tenant", "Tenant "+f.Name, root+"tenants", tenantsBody{Created: f.Name, Token: token})
		},
	}, nil
}

func (c *Console) confirmTenant(v *visit) error {
	name := v.r.URL.Query().Get("name")
	if !tenantName.MatchString(name) {
		return status{http.StatusNotFound, "There is no tenant of such a name."}
	}
	return v.show("confirm", "Delete a tenant", root+"tenants", confirmBody{
		Question: "Delete tenant " + name + "?",
		Warning: "Its administrators lose their access, and its resources, policies and reference values go with it. " +
			"Nobody can bring them back.",
		Action: root + "tenants/delete", Fields: map[string]string{"name": name}, Button: "Delete the tenant", Back: root + "tenants",
	})
}

func (c *Console) deleteTenant(v *visit) (*plan, error) {
	name := v.r.PostFormValue("name")
	if !tenantName.MatchString(name) {
		return nil, status{http.StatusNotFound, "There is no tenant of such a name."}
	}
	return &plan{
		call: callDeleteTenant(name), event: "tenant-delete", subject: name,
		do:   func(ctx context.Context, _ string) error { return c.Tenants.Delete(ctx, name) },
		done: "Tenant " + name + " is deleted.", next: root + "tenants",
	}, nil
}
