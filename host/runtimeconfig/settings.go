package runtimeconfig

import "slices"

// Keys that only annotations have.
const (
	keyInitdata = "initdata"
	keyPolicy   = "policy"
	// keyFragments are signed parts of policies, which the guest checks.
	keyFragments = "policy-fragments"
)

// Prefixes of annotations.
const (
	ShortPrefix = "cloister.dev/"
	KataPrefix  = "io.katacontainers.config."
)

// setting is one key of the configuration under all its names.
type setting struct {
	key   string
	field func(*Config) any // *string, *bool, *int, *float64, *time.Duration or *[]string
	// min and max bound numbers, and durations in seconds.
	min, max float64
	oneOf    []string
	file     bool // an absolute path; in files also relative to the file
	// kata are the names in Kata's files: table without the hypervisor's name, dot, key.
	kata []foreign
	// short is the name of its annotation after ShortPrefix, notes are those after KataPrefix.
	short string
	notes []foreign
	// globs are the paths that an annotation may name.
	globs func(*Config) []string
	// add makes an annotation add to the value, after a space, instead of replacing it.
	add bool
}

// foreign is a name of others, and how its value becomes ours; no conversion takes the value as it is, and one to nil leaves ours alone.
type foreign struct {
	name string
	as   *conversion
}

// maxText bounds every string of the configuration, in bytes.
const maxText = 4096

// settings is every key, in the order of the example.
func settings() []setting {
	names := func(n ...string) []foreign {
		var f []foreign
		for _, s := range n {
			f = append(f, foreign{name: s})
		}
		return f
	}
	converted := func(as *conversion, n ...string) []foreign {
		f := names(n...)
		for i := range f {
			f[i].as = as
		}
		return f
	}
	guestGlobs := func(c *Config) []string { return c.Annotations.ValidGuestPaths }
	var all []setting
	put := func(s setting) { all = append(all, s) }
	hv := func(s setting, name string) { // the same name in the hypervisor's table and as an annotation
		if s.notes = names("hypervisor." + name); s.kata == nil {
			s.kata = s.notes
		}
		put(s)
	}
	const mib = 1 << 24 // 16 TiB, in MiB

	// sandbox
	put(setting{key: "sandbox.tee", field: func(c *Config) any { return &c.Sandbox.TEE },
		oneOf: []string{TEENone, TEEAuto, TEETPM, "snp", "tdx", "se", "cca"}})
	hv(setting{key: "sandbox.vcpus", field: func(c *Config) any { return &c.Sandbox.VCPUs }, min: 0.01, max: 1024, short: "vcpus",
		kata: converted(unlessZero(), "hypervisor.default_vcpus")}, "default_vcpus")
	put(setting{key: "sandbox.max_vcpus", field: func(c *Config) any { return &c.Sandbox.MaxVCPUs }, max: 1024, short: "max-vcpus",
		kata: names("hypervisor.default_maxvcpus"), notes: names("hypervisor.default_max_vcpus")})
	hv(setting{key: "sandbox.memory_mib", field: func(c *Config) any { return &c.Sandbox.MemoryMiB }, min: 128, max: mib,
		short: "memory-mib",
		kata:  converted(unlessZero(), "hypervisor.default_memory")}, "default_memory")
	put(setting{key: "sandbox.max_memory_mib", field: func(c *Config) any { return &c.Sandbox.MaxMemoryMiB }, max: mib,
		kata: names("hypervisor.default_maxmemory")})
	put(setting{key: "sandbox.overhead_vcpus", field: func(c *Config) any { return &c.Sandbox.OverheadVCPUs }, max: 64,
		kata: names("hypervisor.overhead_vcpus")})
	put(setting{key: "sandbox.overhead_memory_mib", field: func(c *Config) any { return &c.Sandbox.OverheadMemoryMiB }, max: 1 << 16,
		kata: names("hypervisor.overhead_memory")})
	put(setting{key: "sandbox.memory_block_mib", field: func(c *Config) any { return &c.Sandbox.MemoryBlockMiB }, min: 2, max: 4096})
	put(setting{key: "sandbox.static_sizing", field: func(c *Config) any { return &c.Sandbox.StaticSizing },
		kata: names("runtime.static_sandbox_resource_mgmt")})
	hv(setting{key: "sandbox.hugepages", field: func(c *Config) any { return &c.Sandbox.Hugepages }}, "enable_hugepages")
	put(setting{key: "sandbox.template", field: func(c *Config) any { return &c.Sandbox.Template }, oneOf: []string{TemplateAuto, TemplateOn, TemplateOff},
		kata: converted(onOff(), "factory.enable_template")})

	// guest
	for _, f := range []struct {
		key, kata string
		field     func(*Config) any
	}{
		{"kernel", "kernel", func(c *Config) any { return &c.Guest.Kernel }}, {"initrd",
			"initrd", func(c *Config) any { return &c.Guest.Initrd }},
		{"image", "image", func(c *Config) any { return &c.Guest.Image }}, {"firmware",
			"firmware", func(c *Config) any { return &c.Guest.Firmware }},
		{"firmware_vars", "firmware_volume", func(c *Config) any { return &c.Guest.FirmwareVars }},
	} {
		hv(setting{key: "guest." + f.key, field: f.field, file: true, globs: guestGlobs}, f.kata)
	}
	hv(setting{key: "guest.kernel_params", field: func(c *Config) any { return &c.Guest.KernelParams },
		short: "kernel-params", add: true}, "kernel_params")
	hv(setting{key: "guest.verity_params", field: func(c *Config) any { return &c.Guest.VerityParams }}, "kernel_verity_params")
	put(setting{key: "guest.seccomp", field: func(c *Config) any { return &c.Guest.Seccomp }, oneOf: []string{SeccompAuto, SeccompOn, SeccompOff},
		kata: converted(disables(), "runtime.disable_guest_seccomp"), notes: converted(disables(), "runtime.disable_guest_seccomp")})

	// vmm
	put(setting{key: "vmm.kind", field: func(c *Config) any { return &c.VMM.Kind }, oneOf: []string{"qemu", "cloud-hypervisor",
		"remote"}})
	hv(setting{key: "vmm.path", field: func(c *Config) any { return &c.VMM.Path }, file: true,
		globs: func(c *Config) []string { return c.Annotations.ValidVMMPaths }}, "path")
	put(setting{key: "vmm.accel", field: func(c *Config) any { return &c.VMM.Accel }, oneOf: []string{"auto", "kvm", "tcg"}})
	hv(setting{key: "vmm.machine_type", field: func(c *Config) any { return &c.VMM.MachineType }}, "machine_type")
	hv(setting{key: "vmm.cpu_features", field: func(c *Config) any { return &c.VMM.CPUFeatures }}, "cpu_features")
	put(setting{key: "vmm.remote_socket", field: func(c *Config) any { return &c.VMM.RemoteSocket }, file: true,
		kata: names("hypervisor.remote_hypervisor_socket")})
	hv(setting{key: "vmm.gpus", field: func(c *Config) any { return &c.VMM.GPUs }, max: 64}, "default_gpus")
	hv(setting{key: "vmm.gpu_model", field: func(c *Config) any { return &c.VMM.GPUModel }}, "default_gpu_model")
	put(setting{key: "vmm.snp_policy", field: func(c *Config) any { return &c.VMM.SNPPolicy }, max: 1 << 40,
		kata: names("hypervisor.snp_guest_policy")})
	put(setting{key: "vmm.snp_id_block", field: func(c *Config) any { return &c.VMM.SNPIDBlock }, kata: names("hypervisor.snp_id_block")})
	put(setting{key: "vmm.snp_id_auth", field: func(c *Config) any { return &c.VMM.SNPIDAuth }, kata: names("hypervisor.snp_id_auth")})
	put(setting{key: "vmm.tdx_quote_port", field: func(c *Config) any { return &c.VMM.TDXQuotePort }, max: 1<<32 - 1,
		kata: names("hypervisor.tdx_quote_generation_service_socket_port")})

	// network
	models := renamed(map[string]string{"tcfilter": "tc", "macvtap": "macvtap", "none": "none"})
	put(setting{key: "network.model", field: func(c *Config) any { return &c.Network.Model }, oneOf: []string{"tc", "macvtap", "none"},
		kata: converted(models, "runtime.internetworking_model"), notes: converted(models, "runtime.internetworking_model")})
	hv(setting{key: "network.queues", field: func(c *Config) any { return &c.Network.Queues }, min: 1, max: 256,
		short: "network-queues"}, "network_queues")
	put(setting{key: "network.vhost", field: func(c *Config) any { return &c.Network.Vhost },
		kata: converted(invert(), "hypervisor.disable_vhost_net"), notes: converted(invert(), "hypervisor.disable_vhost_net")})
	hv(setting{key: "network.rx_bits_per_second", field: func(c *Config) any { return &c.Network.RxBitsPerSecond }, max: 1 << 50},
		"rx_rate_limiter_max_rate")
	hv(setting{key: "network.tx_bits_per_second", field: func(c *Config) any { return &c.Network.TxBitsPerSecond }, max: 1 << 50},
		"tx_rate_limiter_max_rate")

	// storage
	shares := renamed(map[string]string{"virtio-fs": SharedFSVirtiofs, "none": SharedFSNone})
	put(setting{key: "storage.shared_fs", field: func(c *Config) any { return &c.Storage.SharedFS },
		oneOf: []string{StorageAuto, SharedFSNone, SharedFSVirtiofs},
		kata:  converted(shares, "hypervisor.shared_fs"), notes: converted(shares, "hypervisor.shared_fs")})
	hv(setting{key: "storage.virtiofsd", field: func(c *Config) any { return &c.Storage.Virtiofsd }, file: true,
		globs: func(c *Config) []string { return c.Annotations.ValidVirtiofsdPaths }}, "virtio_fs_daemon")
	put(setting{key: "storage.virtiofsd_args", field: func(c *Config) any { return &c.Storage.VirtiofsdArgs },
		kata: names("hypervisor.virtio_fs_extra_args")})
	hv(setting{key: "storage.virtiofs_cache", field: func(c *Config) any { return &c.Storage.VirtiofsCache },
		oneOf: []string{"auto", "always", "metadata", "never"}}, "virtio_fs_cache")
	put(setting{key: "storage.emptydir", field: func(c *Config) any { return &c.Storage.EmptyDir },
		oneOf: []string{StorageAuto, EmptyDirShared, EmptyDirPlain, EmptyDirSealed, EmptyDirGuest},
		kata: converted(renamed(map[string]string{"shared-fs": EmptyDirShared, "block-plain": EmptyDirPlain,
			"block-encrypted": EmptyDirSealed}),
			"runtime.emptydir_mode")})
	put(setting{key: "storage.guest_pull", field: func(c *Config) any { return &c.Storage.GuestPull },
		kata:  append(names("runtime.experimental_force_guest_pull"), foreign{"runtime.experimental", guestPull()}),
		notes: names("runtime.experimental_force_guest_pull")})
	put(setting{key: "storage.scratch_mib", field: func(c *Config) any { return &c.Storage.ScratchMiB }, max: 8 << 20, short: "scratch-mib"})

	// timeouts
	put(setting{key: "timeouts.boot", field: func(c *Config) any { return &c.Timeouts.Boot }, min: 1, max: 3600,
		kata: append(converted(milliseconds(), "agent.reconnect_timeout_ms"), converted(seconds(), "agent.dial_timeout")...)})
	put(setting{key: "timeouts.create_container", field: func(c *Config) any { return &c.Timeouts.CreateContainer }, min: 1, max: 7200,
		short: "create-timeout",
		kata:  converted(seconds(), "agent.create_container_timeout", "runtime.create_container_timeout"),
		notes: converted(seconds(), "runtime.create_container_timeout")})
	put(setting{key: "timeouts.request", field: func(c *Config) any { return &c.Timeouts.Request }, min: 1, max: 3600})
	put(setting{key: "timeouts.health_check", field: func(c *Config) any { return &c.Timeouts.HealthCheck }, min: 1, max: 3600,
		kata: converted(seconds(), "agent.health_check_request_timeout")})
	put(setting{key: "timeouts.hub", field: func(c *Config) any { return &c.Timeouts.Hub }, min: 1, max: 3600,
		kata:  append(converted(milliseconds(), "agent.cdh_api_timeout_ms"), converted(seconds(), "agent.cdh_api_timeout")...),
		notes: append(converted(milliseconds(), "agent.cdh_api_timeout_ms"), converted(seconds(), "agent.cdh_api_timeout")...)})
	put(setting{key: "timeouts.guest_process", field: func(c *Config) any { return &c.Timeouts.GuestProcess }, min: 1, max: 600,
		kata: converted(seconds(), "agent.launch_process_timeout"), notes: converted(seconds(), "agent.launch_process_timeout")})
	put(setting{key: "timeouts.remote", field: func(c *Config) any { return &c.Timeouts.Remote }, min: 60, max: 7200,
		kata: converted(seconds(), "hypervisor.remote_hypervisor_timeout")})

	// cgroup
	put(setting{key: "cgroup.pin_vcpus", field: func(c *Config) any { return &c.Cgroup.PinVCPUs },
		kata: names("runtime.enable_vcpus_pinning"), notes: names("runtime.enable_vcpus_pinning")})

	// logging
	levels := []string{"error", "warn", "info", "debug"}
	put(setting{key: "logging.level", field: func(c *Config) any { return &c.Logging.Level }, oneOf: levels,
		kata: converted(debugLevel(), "runtime.enable_debug")})
	put(setting{key: "logging.guest_level", field: func(c *Config) any { return &c.Logging.GuestLevel }, oneOf: levels,
		kata: append(names("agent.log_level"), converted(debugLevel(), "agent.enable_debug")...)})

	// tracing
	put(setting{key: "tracing.steps", field: func(c *Config) any { return &c.Tracing.Steps }})
	put(setting{key: "tracing.otlp_endpoint", field: func(c *Config) any { return &c.Tracing.OTLPEndpoint }})
	put(setting{key: "tracing.otlp_certificates", field: func(c *Config) any { return &c.Tracing.OTLPCertificates }, file: true})
	put(setting{key: "tracing.otlp_headers_file", field: func(c *Config) any { return &c.Tracing.OTLPHeadersFile }, file: true})
	put(setting{key: "tracing.otlp_insecure_http", field: func(c *Config) any { return &c.Tracing.OTLPInsecureHTTP }})
	put(setting{key: "tracing.ratio", field: func(c *Config) any { return &c.Tracing.Ratio }, max: 1})

	// debug
	put(setting{key: "debug.keep_failed", field: func(c *Config) any { return &c.Debug.KeepFailed },
		kata: names("runtime.keep_abnormal")})
	put(setting{key: "debug.profiles", field: func(c *Config) any { return &c.Debug.Profiles }, kata: names("runtime.enable_pprof"),
		notes: names("runtime.enable_pprof")})
	put(setting{key: "debug.record_requests", field: func(c *Config) any { return &c.Debug.RecordRequests }})

	// annotations
	put(setting{key: "annotations.enabled", field: func(c *Config) any { return &c.Annotations.Enabled },
		kata: converted(patterns(), "hypervisor.enable_annotations")})
	put(setting{key: "annotations.valid_guest_paths", field: func(c *Config) any { return &c.Annotations.ValidGuestPaths }})
	put(setting{key: "annotations.valid_vmm_paths", field: func(c *Config) any { return &c.Annotations.ValidVMMPaths },
		kata: names("hypervisor.valid_hypervisor_paths")})
	put(setting{key: "annotations.valid_virtiofsd_paths", field: func(c *Config) any { return &c.Annotations.ValidVirtiofsdPaths },
		kata: names("hypervisor.valid_virtio_fs_daemon_paths")})
	return all
}

// byPods says which keys annotations can have at all.
func byPods() []string {
	keys := []string{keyInitdata, keyPolicy, keyFragments}
	for _, s := range settings() {
		if s.short != "" || len(s.notes) > 0 {
			keys = append(keys, s.key)
		}
	}
	slices.Sort(keys)
	return keys
}
