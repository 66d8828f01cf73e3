package policy

// requestDefaults are the settings of requests that no plan lists one by one.
type requestDefaults struct {
	AddARPNeighbors struct {
		AllowedStates        []int    `json:"allowed_states"`
		ForbiddenCIDRsRegex  []string `json:"forbidden_cidrs_regex"`
		ForbiddenDeviceNames []string `json:"forbidden_device_names"`
	} `json:"AddARPNeighborsRequest"`
	ExecProcess struct {
		AllowedCommands [][]string `json:"allowed_commands"`
	} `json:"ExecProcessRequest"`
	ReadStream      bool `json:"ReadStreamRequest"`
	UpdateInterface struct {
		AllowRawFlags           int      `json:"allow_raw_flags"`
		AllowedAddressesRegex   []string `json:"allowed_addresses_regex"`
		ForbiddenAddressesRegex []string `json:"forbidden_addresses_regex"`
		ForbiddenHWAddrs        []string `json:"forbidden_hw_addrs"`
		ForbiddenNames          []string `json:"forbidden_names"`
	} `json:"UpdateInterfaceRequest"`
	UpdateRoutes struct {
		AllowedDestRegex     []string `json:"allowed_dest_regex"`
		AllowedGatewayRegex  []string `json:"allowed_gateway_regex"`
		ForbiddenDeviceNames []string `json:"forbidden_device_names"`
		ForbiddenSourceRegex []string `json:"forbidden_source_regex"`
	} `json:"UpdateRoutesRequest"`
	WriteStream bool `json:"WriteStreamRequest"`
}

// Loopback addresses in any spelling, with or without a prefix length: the
// guest's own services listen there and trust it.
const (
	loopback4       = `^(?:::(?:[fF]{4}:)?|(?:0{1,4}:){5}[fF]{4}:)?127\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}(?:/[0-9]{1,3})?$`
	loopback6       = `^(?:0{0,4}:){1,7}0{0,3}1(?:/[0-9]{1,3})?$`
	loopback4Mapped = `^(?:::|(?:0{1,4}:){5})[fF]{4}:7[fF][0-9a-fA-F]{2}:[0-9a-fA-F]{1,4}(?:/[0-9]{1,3})?$`
	anyText         = `^.*$`
)

// reachable, permanent: NUD_REACHABLE and NUD_PERMANENT.
var arpStates = []int{2, 128}

// noARP is IFF_NOARP, the one interface flag a host may set.
const noARP = 128

func defaults(opts Options) requestDefaults {
	loopback := []string{loopback4, loopback6, loopback4Mapped}
	var d requestDefaults
	d.AddARPNeighbors.AllowedStates = arpStates
	d.AddARPNeighbors.ForbiddenCIDRsRegex = loopback
	d.AddARPNeighbors.ForbiddenDeviceNames = []string{"lo"}
	d.ExecProcess.AllowedCommands = append([][]string{}, opts.AllowExec...)
	d.ReadStream = !opts.DenyLogs
	d.UpdateInterface.AllowRawFlags = noARP
	d.UpdateInterface.AllowedAddressesRegex = []string{anyText}
	d.UpdateInterface.ForbiddenAddressesRegex = loopback
	d.UpdateInterface.ForbiddenHWAddrs = []string{"00:00:00:00:00:00"}
	d.UpdateInterface.ForbiddenNames = []string{"lo"}
	d.UpdateRoutes.AllowedDestRegex = []string{anyText}
	d.UpdateRoutes.AllowedGatewayRegex = []string{anyText}
	d.UpdateRoutes.ForbiddenDeviceNames = []string{"lo"}
	d.UpdateRoutes.ForbiddenSourceRegex = loopback
	d.WriteStream = opts.AllowExecStdin
	return d
}
