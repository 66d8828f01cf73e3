package console

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cloister/cloister/broker/resource"
)

type resourcesBody struct {
	List   []resource.Info
	Prefix string
	After  string
	// Next is the path after which the next page is, or "".
	Next string
	// Path and Kind are what the form for a new secret is filled with; never its content.
	Path string
	Kind string
	// Size is how many random bytes to make.
	Size int
}

func (c *Console) resources(v *visit) error {
	q := v.r.URL.Query()
	return c.showResources(v, http.StatusOK, "", resourcesBody{Prefix: q.Get("prefix"), After: q.Get("after"), Path: clip(q.Get("path"), 800)})
}

func (c *Console) showResources(v *visit, code int, problem string, b resourcesBody) error {
	var err error
	b.List, err = c.Resources.List(v.r.Context(), b.Prefix, b.After, pageSize)
	if errors.Is(err, resource.ErrPath) {
		problem, code, b.Prefix, err = "Nothing is listed: "+err.Error(), http.StatusBadRequest, "", nil
	}
	if err != nil {
		return err
	}
	if len(b.List) == pageSize {
		b.Next = b.List[pageSize-1].Path
	}
	if b.Kind == "" {
		b.Kind = kindText
	}
	if b.Size == 0 {
		b.Size = 32
	}
	return v.showWith(code, "resources", "Resources", root+"resources", problem, b)
}

// Where a new secret comes from.
const (
	kindText   = "text"
	kindFile   = "file"
	kindRandom = "random"
)

// maxRandom bounds a secret that the broker makes, in bytes.
const maxRandom = 4096

func (c *Console) putResource(v *visit) (*plan, error) {
	name, err := field(v.r, "path", 1024)
	if err != nil {
		return nil, err
	}
	p, err := resource.ParsePath(resource.SplitPath(name))
	if err != nil {
		// Who may not even see the list learns nothing else here.
		return c.again(resourcesBody{Path: name}, "Nothing was stored: "+err.Error()+"."), nil
	}
	kind := v.r.PostFormValue("kind")
	secret, err := content(v.r, kind)
	var st status
	if errors.As(err, &st) {
		return c.again(resourcesBody{Path: name, Kind: kind}, "Nothing was stored: "+st.text), nil
	}
	if err != nil {
		return nil, err
	}
	return &plan{
		call: callPut(p), event: "resource-write", subject: p.String(),
		do:   func(ctx context.Context, _ string) error { return c.Resources.Put(ctx, p, secret) },
		done: fmt.Sprintf("%s is stored (%s). Its value is not shown again.", p, size(len(secret))),
		next: root + "resources?" + url.Values{"prefix": {p.Repository()}}.Encode(),
		failed: func(v *visit, err error) error {
			if aerr := v.need(callResources()); aerr != nil {
				return aerr
			}
			return c.showResources(v, http.StatusUnprocessableEntity, "Nothing was stored: "+err.Error(), resourcesBody{Path: name, Kind: kind})
		},
	}, nil
}

// again shows the form with what was wrong with it.
func (c *Console) again(b resourcesBody, problem string) *plan {
	return &plan{call: callResources(), show: func(v *visit) error {
		return c.showResources(v, http.StatusUnprocessableEntity, problem, b)
	}}
}

// content reads or makes a secret.
func content(r *http.Request, kind string) ([]byte, error) {
	switch kind {
	case kindText:
		text := lines(r.PostFormValue("text"))
		if text == "" {
			return nil, status{http.StatusUnprocessableEntity, "the text is empty."}
		}
		return []byte(text), nil
	case kindFile:
		f, _, err := r.FormFile("file")
		if err != nil {
			return nil, status{http.StatusUnprocessableEntity, "no file was chosen."}
		}
		defer f.Close()
		secret, err := io.ReadAll(f)
		if err != nil {
			return nil, fmt.Errorf("reading the file of the form: %w", err)
		}
		if len(secret) == 0 {
			return nil, status{http.StatusUnprocessableEntity, "the file is empty."}
		}
		return secret, nil
	case kindRandom:
		n, err := strconv.Atoi(r.PostFormValue("size"))
		if err != nil || n < 16 || n > maxRandom {
			return nil, status{http.StatusUnprocessableEntity, fmt.Sprintf("the number of random bytes has to be 16 to %d.", maxRandom)}
		}
		secret := make([]byte, n)
		if _, err := rand.Read(secret); err != nil {
			return nil, fmt.Errorf("making a random secret: %w", err)
		}
		return secret, nil
	}
	return nil, status{http.StatusUnprocessableEntity, "choose text, file or random bytes."}
}

// confirmBody asks before something is removed.
type confirmBody struct {
	Question string
	Warning  string
	// Action is the path of the form, Fields what it sends, Back where to go instead.
	Action string
	Fields map[string]string
	Button string
	Back   string
}

func (c *Console) confirmDelete(v *visit) error {
	p, err := resource.ParsePath(resource.SplitPath(v.r.URL.Query().Get("path")))
	if err != nil {
		return status{http.StatusNotFound, err.Error()}
	}
	return v.show("confirm", "Delete a resource", root+"resources", confirmBody{
		Question: "Delete " + p.String() + "?",
		Warning:  "All its versions are removed. Guests that need it will not start until it is stored again, and nobody can bring it back.",
		Action:   root + "resources/delete", Fields: map[string]string{"path": p.String()}, Button: "Delete the resource",
		Back: root + "resources",
	})
}

func (c *Console) deleteResource(v *visit) (*plan, error) {
	p, err := resource.ParsePath(resource.SplitPath(v.r.PostFormValue("path")))
	if err != nil {
		return nil, status{http.StatusNotFound, err.Error()}
	}
	return &plan{
		call: callDrop(p), event: "resource-delete", subject: p.String(),
		do:   func(ctx context.Context, _ string) error { return c.Resources.Delete(ctx, p) },
		done: p.String() + " is deleted.", next: root + "resources",
	}, nil
}
