package console

import (
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/*
var staticFiles embed.FS

// home is the path of the overview, root what the paths of all other pages begin with. Home has no slash at its end: the server
// refuses paths that are not in plain form.
const (
	home = "/console"
	root = home + "/"
)

// maxForm bounds a form, in bytes, as the API bounds a body. A form is kept in memory: secrets must not reach a temporary file.
const maxForm = 2 << 20

// contentPolicy lets a page load its style, script and icon, poll the broker and send forms to it. Nothing else, and no frame.
const contentPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// Console answers requests of /console and below.
type Console struct {
	Parts
	sessions *sessions
	attempts *attempts
	pages    map[string]*template.Template
	origin   *http.CrossOriginProtection
	mux      *http.ServeMux
}

// New makes a console, which takes the path /console and those that begin with /console/.
func New(p Parts) (*Console, error) {
	c := &Console{
		Parts: p, sessions: newSessions(p.Now), attempts: newAttempts(p.Now), origin: http.NewCrossOriginProtection(), mux: http.NewServeMux(),
	}
	if err := c.parse(); err != nil {
		return nil, err
	}
	c.routes()
	return c, nil
}

// parse reads the templates: each page is a file beside layout.html and parts.html.
func (c *Console) parse() error {
	entries, err := templateFiles.ReadDir("templates")
	if err != nil {
		return fmt.Errorf("console templates: %w", err)
	}
	base, err := template.New("layout").Funcs(functions(c.Now)).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return fmt.Errorf("console templates: %w", err)
	}
	c.pages = map[string]*template.Template{}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".html")
		if name == "layout" || name == "parts" {
			continue
		}
		one, err := base.Clone()
		if err == nil {
			one, err = one.ParseFS(templateFiles, "templates/"+e.Name())
		}
		if err != nil {
			return fmt.Errorf("console templates: %w", err)
		}
		c.pages[name] = one
	}
	return nil
}

func (c *Console) routes() {
	c.mux.HandleFunc("GET /console/static/{file}", c.static)
	c.mux.HandleFunc("GET /console/sign-in", c.signInForm)
	c.mux.HandleFunc("POST /console/sign-in", c.signIn)
	c.mux.HandleFunc("POST /console/sign-out", c.signOut)
	c.mux.HandleFunc("GET /console/live", c.live)

	c.mux.HandleFunc("GET /console", c.read(callStatus, c.overview))
	c.mux.HandleFunc("GET /console/{$}", c.read(callStatus, c.overview))
	c.mux.HandleFunc("GET /console/attestations", c.read(callDecisions, c.attestations))
	c.mux.HandleFunc("GET /console/refusals", c.read(callDecisions, c.refusals))
	c.mux.HandleFunc("GET /console/decisions/{id}", c.readNamed("id", callDecision, c.decision))
	c.mux.HandleFunc("GET /console/policies", c.read(callPolicies, c.policies))
	c.mux.HandleFunc("GET /console/policies/attestation", c.read(callPolicies, c.openPolicy))
	c.mux.HandleFunc("GET /console/policies/attestation/{id}", c.read(callPolicies, c.policy))
	c.mux.HandleFunc("POST /console/policies/attestation/{id}", c.write(c.changePolicy))
	c.mux.HandleFunc("GET /console/policies/resource", c.read(callResourcePolicy, c.policy))
	c.mux.HandleFunc("POST /console/policies/resource", c.write(c.changePolicy))
	c.mux.HandleFunc("GET /console/references", c.read(callReferences, c.references))
	c.mux.HandleFunc("POST /console/references", c.write(c.register))
	c.mux.HandleFunc("GET /console/references/remove", c.read(callReferences, c.confirmRemove))
	c.mux.HandleFunc("POST /console/references/remove", c.write(c.remove))
	c.mux.HandleFunc("GET /console/audit", c.read(callAudit, c.auditTail))
	if c.Resources != nil {
		c.mux.HandleFunc("GET /console/resources", c.read(callResources, c.resources))
		c.mux.HandleFunc("POST /console/resources", c.write(c.putResource))
		c.mux.HandleFunc("GET /console/resources/delete", c.read(callResources, c.confirmDelete))
		c.mux.HandleFunc("POST /console/resources/delete", c.write(c.deleteResource))
	}
	if c.Tenants != nil {
		c.mux.HandleFunc("GET /console/tenants", c.read(callTenants, c.tenants))
		c.mux.HandleFunc("POST /console/tenants", c.write(c.createTenant))
		c.mux.HandleFunc("GET /console/tenants/delete", c.read(callTenants, c.confirmTenant))
		c.mux.HandleFunc("POST /console/tenants/delete", c.write(c.deleteTenant))
	}
	c.mux.HandleFunc("/console/{rest...}", c.lost)
}

// ServeHTTP is part of http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := c.origin.Check(r); err != nil {
		c.complain(w, r, nil, http.StatusForbidden, "This request did not come from a page of the console, so nothing was done.")
		return
	}
	c.mux.ServeHTTP(w, r)
}

// kinds of the files in static.
var kinds = map[string]string{
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// static sends a file of the console. These are in the public source and need no sign-in.
func (c *Console) static(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	body, err := staticFiles.ReadFile("static/" + name)
	kind := kinds[path.Ext(name)]
	if err != nil || kind == "" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-cache")
	c.send(w, r, body)
}

func (c *Console) send(w http.ResponseWriter, r *http.Request, body []byte) {
	if _, err := w.Write(body); err != nil {
		c.Log.DebugContext(r.Context(), "the browser went away before the answer", "error", err)
	}
}

func (c *Console) lost(w http.ResponseWriter, r *http.Request) {
	s, err := c.session(w, r, true)
	if err != nil || s == nil {
		http.Redirect(w, r, root+"sign-in", http.StatusSeeOther)
		return
	}
	c.complain(w, r, s, http.StatusNotFound, "There is no such page.")
}

// section is a part of the console that has an entry in the menu.
type section struct {
	Name string
	Path string
	call adminauth.Call
}

func (c *Console) sections() []section {
	list := []section{
		{"Overview", home, callStatus()},
		{"Attestations", root + "attestations", callDecisions()},
		{"Refusals", root + "refusals", callDecisions()},
	}
	if c.Resources != nil {
		list = append(list, section{"Resources", root + "resources", callResources()})
	}
	list = append(list,
		section{"Policies", root + "policies", callPolicies()},
		section{"Reference values", root + "references", callReferences()},
	)
	if c.Tenants != nil {
		list = append(list, section{"Tenants", root + "tenants", callTenants()})
	}
	return append(list, section{"Audit log", root + "audit", callAudit()})
}

// firstPage is the first page that an administrator may see, with the administrator's name, or the reason why there is none.
func (c *Console) firstPage(r *http.Request, s *session) (path, name string, err error) {
	var first error
	for _, one := range c.sections() {
		name, err := c.admit(r, s, one.call)
		if err == nil {
			return one.Path, name, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", "", first
}

// handleTimeout bounds one request; a dry run evaluates a policy.
const handleTimeout = 30 * time.Second
