package podnet

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// cni runs the plugins of one network for one pod.
type cni struct {
	t       testing.TB
	node    *netns
	plugins []map[string]any
	id      string
	added   []added
}

// added is what has to be deleted.
type added struct {
	pod    *netns
	ifname string
	result json.RawMessage
}

// newCNI reads a network's plugins, a JSON list in which DATA is a directory of the node.
func newCNI(t testing.TB, node *netns, plugins string) *cni {
	t.Helper()
	c := &cni{t: t, node: node, id: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	if err := json.Unmarshal([]byte(strings.ReplaceAll(plugins, "DATA", filepath.Dir(node.path))), &c.plugins); err != nil {
		t.Fatal(err)
	}
	return c
}

// add makes the pod's interface and returns what the plugins say about it. The interface is deleted at the end of the test, also after
// the pod's namespace has gone, as runtimes do.
func (c *cni) add(pod *netns, ifname string) json.RawMessage {
	c.t.Helper()
	var result json.RawMessage
	for _, p := range c.plugins {
		out, err := c.exec("ADD", p, pod, ifname, result)
		if err != nil {
			c.t.Fatal(err)
		}
		result = json.RawMessage(out)
	}
	a := added{pod, ifname, result}
	c.added = append(c.added, a)
	c.t.Cleanup(func() { c.del(a) })
	return result
}

func (c *cni) del(a added) {
	for i := len(c.plugins) - 1; i >= 0; i-- {
		if _, err := c.exec("DEL", c.plugins[i], a.pod, a.ifname, a.result); err != nil {
			c.t.Error(err)
		}
	}
}

func (c *cni) exec(command string, plugin map[string]any, pod *netns, ifname string, previous json.RawMessage) (string, error) {
	conf := map[string]any{"cniVersion": "0.4.0", "name": "net-" + fmt.Sprint(plugin["network"])}
	for k, v := range plugin {
		if k != "network" {
			conf[k] = v
		}
	}
	if previous != nil {
		conf["prevResult"] = previous
	}
	b, err := json.Marshal(conf)
	if err != nil {
		return "", err
	}
	env := []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + c.id + "-" + pod.name(), "CNI_NETNS=" + pod.path,
		"CNI_IFNAME=" + ifname, "CNI_PATH=" + cniPath,
	}
	return c.node.command(string(b), env, cniPath+"/"+plugin["type"].(string))
}

func (n *netns) name() string { return n.path[strings.LastIndexByte(n.path, '/')+1:] }

// The networks of the tests. Both families, an MTU of its own, masquerading and port mapping, as a small cluster would have.
const (
	bridgeNet = `[{"network":"br","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,"mtu":1400,"ipam":{
		"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
		{"network":"br","type":"portmap","capabilities":{"portMappings":true},"snat":true,
		"runtimeConfig":{"portMappings":[{"hostPort":8088,"containerPort":80,"protocol":"tcp"}]}}]`
	plainBridgeNet = `[{"network":"plain","type":"bridge","bridge":"cni1","isGateway":true,"ipam":{"type":"host-local",
		"dataDir":"DATA","ranges":[[{"subnet":"10.78.0.0/24"}]],"routes":[{"dst":"10.99.0.0/16"}]}}]`
	ptpNet = `[{"network":"ptp","type":"ptp","ipMasq":true,"mtu":1450,"ipam":{"type":"host-local",
		"dataDir":"DATA","ranges":[[{"subnet":"10.79.0.0/24"}],[{"subnet":"fd79::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}]`
	macvlanNet = `[{"network":"mv","type":"macvlan","master":"up0","mode":"bridge","ipam":{"type":"host-local",
		"dataDir":"DATA","ranges":[[{"subnet":"10.80.0.0/24","rangeStart":"10.80.0.10"}]]}}]`
)
