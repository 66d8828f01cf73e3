package kubepod

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

// Large is a pod of n containers with what a busy cluster gives each of them. The last of the list is returned, as the worst to look for.
func Large(n int) (Object, *Container) {
	list := []*Container{Pause()}
	for i := range n {
		c := Workload(fmt.Sprintf("c%d", i))
		required := []string{"PATH", "MODE", "POD", "IP"}
		for k := range 20 {
			required = append(required, fmt.Sprintf("SETTING_%d", k))
			v := fmt.Sprintf("SETTING_%d=value-%d-%d", k, i, k)
			c.Env = append(c.Env, v)
			c.Process()["Env"] = append(c.Process()["Env"].([]string), v)
		}
		c.Entry["required_env"] = required
		c.Entry["required_mounts"] = []string{"/var/run/secrets/kubernetes.io/serviceaccount"}
		for k := range 10 {
			c.Env = append(c.Env, fmt.Sprintf("APP%d_SERVICE_HOST=10.0.0.%d", k, k))
		}
		list = append(list, c)
	}
	return Data(list...), list[n]
}

// Ask is a request with a name for reports.
type Ask struct {
	Name    string
	Request proto.Message
}

// Asks are the requests that a running container causes, small ones, and that a policy allows again and again: c was created as id.
func Asks(c *Container, id string) []Ask {
	exec := &agent.Process{Args: []string{"/bin/probe", c.Name}, Env: c.Env, Cwd: "/", NoNewPrivileges: true,
		User: &agent.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000}}}
	return []Ask{
		{"exec (a probe)", &agent.ExecProcessRequest{ContainerId: id, ExecId: "x", Process: exec}},
		{"copy file", &agent.CopyFileRequest{Path: SharedDir + ID(5) + "-0123456789abcdef-hosts", FileMode: 0o100644, FileSize: 4, Data: []byte("text")}},
		{"update routes", &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Dest: "10.0.0.0/8", Gateway: "10.0.0.1", Device: "eth0"}}}}},
		{"read output", &agent.ReadStreamRequest{ContainerId: id, Len: 4096}},
		{"start", &agent.StartContainerRequest{ContainerId: id}},
		{"wait", &agent.WaitProcessRequest{ContainerId: id}},
		{"signal", &agent.SignalProcessRequest{ContainerId: id, Signal: 15}},
		{"stats", &agent.StatsContainerRequest{ContainerId: id}},
	}
}
