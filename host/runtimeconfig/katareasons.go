package runtimeconfig

// reason explains why keys of Kata have no effect.
type reason struct{ why, keys string }

// reasons is every key of Kata 4.1 (specification of the runtime, section 21) that no setting stands for.
func reasons() []reason {
	return []reason{
		{"always so here", "sandbox_cgroup_only disable_image_nvdimm disable_selinux disable_guest_selinux guest_selinux_label " +
			"disable_nesting_checks name agent_name kubelet_root_dir " +
			"kernel_modules disable_block_device_use"},
		{"disks are virtio-blk, read and written by threads", "block_device_driver block_device_aio"},
		{"a guest with a console is another image, with another measurement", "debug_console_enabled"},
		{"chosen by Cloister itself", "rootfs_type vm_rootfs_driver default_bridges memory_slots memory_offset queue_size num_queues " +
			"block_device_queue_size block_device_num_queues enable_iothreads indep_iothreads " +
			"enable_iommu enable_iommu_platform entropy_source " +
			"virtio_fs_cache_size virtio_fs_queue_size machine_accelerators block_device_cache_set block_device_cache_direct " +
			"block_device_cache_noflush use_legacy_serial seccomp_sandbox seccompsandbox enable_virtio_mem enable_mem_prealloc " +
			"block_device_logical_sector_size block_device_physical_sector_size blk_logical_sector_size blk_physical_sector_size " +
			"measurement_algo msize_9p reclaim_guest_freed_memory rootless"},
		{"the guest says when it is ready, nobody asks again and again",
			"dial_timeout_ms server_port log_port passfd_listener_port use_passfd_io"},
		{"there is no tracing of the guest by Kata's keys", "enable_tracing jaeger_endpoint jaeger_user jaeger_password"},
		{"devices are not passed through yet", "cold_plug_vfio hot_plug_vfio pcie_root_port pcie_switch_port vfio_mode " +
			"pod_resource_api_sock " +
			"visible_cdi_devices"},
		{"the guest is one image, without extensions", "guest_extension_images"},
		{"there is no memory dump", "guest_memory_dump_paging"},
		{"firmware is guest.firmware and guest.firmware_vars", "pflashes"},
		{"hooks of the host do not run in the guest", "guest_hook_path"},
		{"policies and initdata come with the pod", "policy initdata"},
		{"the network namespace of the pod is always used", "disable_new_netns dan_conf"},
		{"templates have one place and are made by the shims (sandbox.template)", "template_path vm_cache_number vm_cache_endpoint"},
		{"NUMA nodes of the host are not shown to guests", "enable_numa numa_mapping"},
		{"there is no jailer", "jailer_path valid_jailer_paths"},
		{"asset hashes are in the guest image's manifest", "kernel_hash image_hash initrd_hash firmware_hash asset_hash_type"},
		{"memory is not tuned in the guest", "mem_agent mem_agent_enable"},
		{"no annotation may set what it bounds",
			"valid_entropy_sources valid_file_mem_backends valid_vhost_user_store_paths valid_ctlpaths"},
		{"vhost-user storage is not supported", "enable_vhost_user_store vhost_user_store_path vhost_user_reconnect_timeout_sec"},
		{"container pipes have the kernel's size", "container_pipe_size"},
		{"debug output of the VMM follows logging.level", "enable_debug hypervisor_loglevel log_level extra_monitor_socket"},
		{"the VMM is always confined by seccomp", "disable_seccomp"},
		{"network limits are network.rx_bits_per_second and network.tx_bits_per_second", "net_rate_limiter_bw_max_rate " +
			"net_rate_limiter_bw_one_time_burst net_rate_limiter_ops_max_rate net_rate_limiter_ops_one_time_burst"},
		{"disks are not limited", "disk_rate_limiter_bw_max_rate disk_rate_limiter_bw_one_time_burst disk_rate_limiter_ops_max_rate " +
			"disk_rate_limiter_ops_one_time_burst"},
	}
}
