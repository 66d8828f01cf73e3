package policytest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/internal/nearest"
	"github.com/cloister/cloister/wire/agent"
)

// own are the kinds whose input the guest makes itself, and so is no message of the protocol: a container that has ended
// {container_id, status}, a connection to forward {port}, a signed fragment {issuer, feed, svn, expired}, and a sealed secret that
// it is about to open.
var own = []string{"ContainerExited", "LoadPolicyFragmentRequest", "PortForwardRequest", "UnsealFileRequest", "UnsealVariableRequest"}

// storageKind is asked with a Storage of another request.
const storageKind = "HostStorageRequest"

// Kinds are all kinds of requests that guests ask a policy about, in alphabetical order.
func Kinds() []string {
	kinds := append([]string{storageKind}, own...)
	for _, input := range methods() {
		kinds = append(kinds, input)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// methods are the methods of the agent's services and the names of their requests.
func methods() map[string]string {
	out := map[string]string{}
	services := agent.File_wire_agent_agent_proto.Services()
	for i := range services.Len() {
		list := services.Get(i).Methods()
		for k := range list.Len() {
			out[string(list.Get(k).Name())] = string(list.Get(k).Input().Name())
		}
	}
	return out
}

// KindError is a kind of request that no guest asks about.
type KindError struct {
	Kind string
	Near string // the kind that was probably meant, or ""
}

func (e *KindError) Error() string {
	text := fmt.Sprintf("%.80q is no kind of request", e.Kind)
	if e.Near != "" {
		text += ", did you mean " + e.Near + "?"
	}
	return text
}

// maxTypos is how many letters may be wrong in a word that stands for another.
const maxTypos = 4

func checkKind(kind string) error {
	kinds := Kinds()
	if slices.Contains(kinds, kind) {
		return nil
	}
	if input, ok := methods()[kind]; ok {
		return &KindError{kind, input}
	}
	words, meant := []string{}, map[string]string{}
	for _, k := range kinds {
		for _, word := range []string{k, strings.TrimSuffix(k, "Request")} {
			word = strings.ToLower(word)
			words, meant[word] = append(words, word), k
		}
	}
	return &KindError{kind, meant[nearest.To(strings.ToLower(kind), words, min(maxTypos, (len(kind)+1)/2))]}
}
