package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
)

// figure is one number of the overview. Key names it to the script, which replaces Value.
type figure struct {
	Key, Label, Value string
}

type overviewBody struct {
	Counters Counters
	Groups   []figureGroup
	Recent   []decision.Record
	Refused  []decision.Record
	// Listed tells that the visitor may see decisions.
	Listed    bool
	Resources bool
}

type figureGroup struct {
	Name    string
	Figures []figure
}

func figures(n Counters) []figureGroup {
	number := func(key, label string, v any) figure { return figure{key, label, grouped(v)} }
	return []figureGroup{
		{"Since this replica started", []figure{
			number("attested", "guests attested", n.Attested),
			number("attestations-refused", "guests refused", n.AttestationsRefused),
			number("released", "secrets released", n.Released),
			number("resources-refused", "secrets refused", n.ResourcesRefused),
			number("handshakes", "handshakes", n.Handshakes),
		}},
		{"Now", []figure{
			number("sessions", "open handshakes", n.Sessions),
			number("resources", "secrets stored", n.Resources),
			number("reference-values", "reference values", n.ReferenceValues),
		}},
	}
}

// recent is how many decisions the overview shows of each kind.
const recent = 6

func (c *Console) overview(v *visit) error {
	n, err := c.Counters(v.r.Context())
	if err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	b := overviewBody{Counters: n, Groups: figures(n), Listed: v.may(callDecisions()), Resources: c.Resources != nil}
	if b.Listed {
		if b.Recent, err = c.Decisions.List(v.r.Context(), decision.ListOptions{Kind: decision.KindAttestation, Limit: recent}); err != nil {
			return err
		}
		o := decision.ListOptions{Kind: decision.KindResource, Decision: audit.Deny, Limit: recent}
		if b.Refused, err = c.Decisions.List(v.r.Context(), o); err != nil {
			return err
		}
	}
	return v.show("overview", "Overview", home, b)
}

// liveAnswer is what the script polls.
type liveAnswer struct {
	Time   string            `json:"time"`
	Values map[string]string `json:"values"`
}

// live answers the script. It does not prolong the session: a page that is left open ends by itself.
func (c *Console) live(w http.ResponseWriter, r *http.Request) {
	s, err := c.session(w, r, false)
	if err != nil || s == nil {
		http.Error(w, "the session is over", http.StatusUnauthorized)
		return
	}
	if _, err := c.admit(r, s, callStatus()); err != nil {
		http.Error(w, adminauth.ErrDenied.Error(), http.StatusForbidden)
		return
	}
	n, err := c.Counters(r.Context())
	if err != nil {
		c.Log.ErrorContext(r.Context(), "counting for the console", "error", err)
		http.Error(w, "counting failed", http.StatusInternalServerError)
		return
	}
	a := liveAnswer{Time: c.Now().UTC().Format(time.TimeOnly), Values: map[string]string{}}
	for _, g := range figures(n) {
		for _, f := range g.Figures {
			a.Values[f.Key] = f.Value
		}
	}
	body, err := json.Marshal(a)
	if err != nil {
		http.Error(w, "encoding failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	c.send(w, r, body)
}
