package console

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/refstore"
)

type referencesBody struct {
	Records []refstore.Record
	Groups  []string
	Name    string
	Group   string
	Total   int
	Form    referenceForm
	// MayWrite tells that the form may be sent, Now is when "expired" is.
	MayWrite bool
	Soon     time.Time
}

// referenceForm is what the form for new values is filled with.
type referenceForm struct {
	Name, Values, Group string
	Replace             bool
}

// soon is how long before its end a value is marked.
const soon = 30 * 24 * time.Hour

func (c *Console) references(v *visit) error {
	q := v.r.URL.Query()
	b := referencesBody{
		Name: clip(q.Get("name"), 512), Group: clip(q.Get("group"), 256),
		Form: referenceForm{Name: clip(q.Get("add"), 512), Values: clip(q.Get("value"), 8192)},
	}
	return c.showReferences(v, http.StatusOK, "", b)
}

func (c *Console) showReferences(v *visit, code int, problem string, b referencesBody) error {
	all, err := c.References.List(v.r.Context())
	if err != nil {
		return err
	}
	b.Total, b.MayWrite, b.Soon = len(all), v.may(callRegister()), c.Now().Add(soon)
	groups := map[string]bool{}
	for _, r := range all {
		inGroup := b.Group == ""
		for _, e := range r.Elements {
			for _, a := range e.Approvals {
				if a.Group != "" {
					groups[a.Group] = true
				}
				inGroup = inGroup || a.Group == b.Group
			}
		}
		if inGroup && (b.Name == "" || strings.Contains(r.Name, b.Name)) {
			b.Records = append(b.Records, r)
		}
	}
	for g := range groups {
		b.Groups = append(b.Groups, g)
	}
	sort.Strings(b.Groups)
	return v.showWith(code, "references", "Reference values", root+"references", problem, b)
}

// values reads the lines of the form: each is JSON, or else a text as it stands. Hexadecimal is text: a measurement of digits alone
// is no number.
func values(text string) []json.RawMessage {
	var out []json.RawMessage
	for line := range strings.SplitSeq(lines(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		raw := json.RawMessage(line)
		if strings.Trim(line, "0123456789abcdefABCDEF") == "" && len(line) > 15 || !json.Valid(raw) {
			raw, _ = json.Marshal(line) // a string is always JSON
		}
		out = append(out, raw)
	}
	return out
}

// formValue is a value as it has to stand in the form to mean the same.
func formValue(raw json.RawMessage) string {
	text := pretty(raw, false)
	var want, got any
	if list := values(text); len(list) == 1 && json.Unmarshal(raw, &want) == nil && json.Unmarshal(list[0], &got) == nil &&
		reflect.DeepEqual(want, got) {
		return text
	}
	return string(raw)
}

func (c *Console) register(v *visit) (*plan, error) {
	var form referenceForm
	var err error
	for name, to := range map[string]*string{"name": &form.Name, "group": &form.Group} {
		if *to, err = field(v.r, name, 512); err != nil {
			return nil, err
		}
	}
	form.Values, form.Replace = lines(v.r.PostFormValue("values")), v.r.PostFormValue("mode") == refstore.ModeReplace
	list := values(form.Values)
	again := func(problem string) func(v *visit) error {
		return func(v *visit) error {
			if err := v.need(callReferences()); err != nil {
				return err
			}
			return c.showReferences(v, http.StatusUnprocessableEntity, problem, referencesBody{Form: form})
		}
	}
	if form.Name == "" || len(list) == 0 {
		return &plan{call: callReferences(), show: again("Nothing was registered: a name and at least one value are needed.")}, nil
	}
	payload, err := json.Marshal(map[string][]json.RawMessage{form.Name: list})
	if err != nil {
		return nil, err
	}
	m := refstore.Message{
		Version: refstore.MessageVersion, Type: "sample", Payload: base64.StdEncoding.EncodeToString(payload), Group: form.Group,
		Mode: refstore.ModeAdd,
	}
	if form.Replace {
		m.Mode = refstore.ModeReplace
	}
	message, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &plan{
		call: callRegister(), event: "reference-value", subject: form.Name,
		do: func(ctx context.Context, admin string) error {
			_, err := c.References.Register(ctx, message, clip(admin, 250))
			return err
		},
		done: "Registered for " + clip(form.Name, 200) + ".", next: root + "references",
		failed: func(v *visit, err error) error { return again("Nothing was registered: " + err.Error())(v) },
	}, nil
}

// confirmRemove asks before a value, all values of a name, or those of a group are removed.
func (c *Console) confirmRemove(v *visit) error {
	q := v.r.URL.Query()
	name, value, group := q.Get("name"), q.Get("value"), q.Get("group")
	b := confirmBody{Action: root + "references/remove", Fields: map[string]string{}, Back: root + "references", Button: "Remove"}
	b.Warning = "Guests that were accepted because of it are refused from now on."
	switch {
	case group != "":
		b.Question = "Remove what group " + clip(group, 256) + " registered?"
		b.Warning = "Values that others registered too stay. " + b.Warning
		b.Fields["group"], b.Button = group, "Remove the group"
	case value != "":
		b.Question = "Remove one value of " + clip(name, 512) + "?"
		b.Warning = clip(pretty(json.RawMessage(value), false), 1000) + " — " + b.Warning
		b.Fields["name"], b.Fields["value"] = name, value
	case name != "":
		b.Question = "Remove all values of " + clip(name, 512) + "?"
		b.Fields["name"], b.Button = name, "Remove all"
	default:
		return status{http.StatusNotFound, "Nothing is named."}
	}
	return v.show("confirm", "Remove a reference value", root+"references", b)
}

func (c *Console) remove(v *visit) (*plan, error) {
	name, value, group := v.r.PostFormValue("name"), v.r.PostFormValue("value"), v.r.PostFormValue("group")
	p := &plan{event: "reference-value-delete", next: root + "references"}
	switch {
	case group != "":
		p.call, p.subject, p.done = callGroup(group), "group "+group, "The values of group "+clip(group, 200)+" are removed."
		p.do = func(ctx context.Context, _ string) error { _, err := c.References.DeleteGroup(ctx, group); return err }
	case value != "":
		p.call, p.subject, p.done = callRemove(name), name, "One value of "+clip(name, 200)+" is removed."
		p.do = func(ctx context.Context, _ string) error {
			return c.References.Remove(ctx, name, json.RawMessage(value))
		}
	case name != "":
		p.call, p.subject, p.done = callRemove(name), name, "All values of "+clip(name, 200)+" are removed."
		p.do = func(ctx context.Context, _ string) error { return c.References.Delete(ctx, name) }
	default:
		return nil, status{http.StatusNotFound, "Nothing is named."}
	}
	return p, nil
}
