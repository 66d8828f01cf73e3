package policy

import future.keywords.every
import future.keywords.in

api_version := "0.10.0"
framework_version := "0.2.3"

fragments := [
  {
    "issuer": "did:x509:0:sha256:I__iuL25oXEVFdTP_aBLx_eT1RPHbCQ_ECBQfYZpt9s::eku:1.3.6.1.4.1.311.76.59.1.3",
    "feed": "mcr.microsoft.com/aci/aci-cc-infra-fragment",
    "minimum_svn": "4",
    "includes": [
      "containers",
      "fragments"
    ]
  }
]

containers := [
  {
    "id": "registry.example/shop/tools:1",
    "name": "prepare",
    "command": [
      "/bin/prepare",
      "data"
    ],
    "env_rules": [
      {
        "pattern": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "strategy": "string",
        "required": false
      },
      {
        "pattern": "TERM=xterm",
        "strategy": "string",
        "required": false
      },
      {
        "pattern": "(?i)(FABRIC)_.+=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "HOSTNAME=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "T(E)?MP=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "FabricPackageFileName=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "HostedServiceName=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "IDENTITY_API_VERSION=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "IDENTITY_HEADER=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "IDENTITY_SERVER_THUMBPRINT=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "azurecontainerinstance_restarted_by=.+",
        "strategy": "re2",
        "required": false
      }
    ],
    "layers": [
      "1111111111111111111111111111111111111111111111111111111111111111",
      "3333333333333333333333333333333333333333333333333333333333333333"
    ],
    "mounts": [
      {
        "destination": "/scratch",
        "options": [
          "rbind",
          "rshared",
          "rw"
        ],
        "source": "sandbox:///tmp/atlas/emptydir/.+",
        "type": "bind"
      },
      {
        "destination": "/etc/resolv.conf",
        "options": [
          "rbind",
          "rshared",
          "rw"
        ],
        "source": "sandbox:///tmp/atlas/resolvconf/.+",
        "type": "bind"
      }
    ],
    "exec_processes": [],
    "signals": [
      9,
      15
    ],
    "user": {
      "user_idname": {
        "pattern": "0",
        "strategy": "id"
      },
      "group_idnames": [
        {
          "pattern": "",
          "strategy": "any"
        }
      ],
      "umask": "0022"
    },
    "capabilities": {
      "ambient": [],
      "bounding": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ],
      "effective": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ],
      "inheritable": [],
      "permitted": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ]
    },
    "seccomp_profile_sha256": "",
    "allow_elevated": false,
    "working_dir": "/",
    "allow_stdio_access": true,
    "no_new_privileges": false
  },
  {
    "id": "registry.example/shop/web:2",
    "name": "web",
    "command": [
      "/bin/web",
      "--listen",
      ":8080"
    ],
    "env_rules": [
      {
        "pattern": "MODE=production",
        "strategy": "string",
        "required": true
      },
      {
        "pattern": "PRICE=[5$]",
        "strategy": "string",
        "required": true
      },
      {
        "pattern": "^API_KEY=(?:(?s:.*))$",
        "strategy": "re2",
        "required": true
      },
      {
        "pattern": "^THIM_ENDPOINT=(?:(?s:.*))$",
        "strategy": "re2",
        "required": true
      },
      {
        "pattern": "PATH=/bin",
        "strategy": "string",
        "required": true
      },
      {
        "pattern": "TMP=/scratch",
        "strategy": "string",
        "required": true
      },
      {
        "pattern": "TERM=xterm",
        "strategy": "string",
        "required": false
      },
      {
        "pattern": "(?i)(FABRIC)_.+=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "HOSTNAME=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "FabricPackageFileName=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "HostedServiceName=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "IDENTITY_API_VERSION=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "IDENTITY_HEADER=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "IDENTITY_SERVER_THUMBPRINT=.+",
        "strategy": "re2",
        "required": false
      },
      {
        "pattern": "azurecontainerinstance_restarted_by=.+",
        "strategy": "re2",
        "required": false
      }
    ],
    "layers": [
      "1111111111111111111111111111111111111111111111111111111111111111",
      "2222222222222222222222222222222222222222222222222222222222222222"
    ],
    "mounts": [
      {
        "destination": "/data",
        "options": [
          "rbind",
          "rshared",
          "rw"
        ],
        "source": "sandbox:///tmp/atlas/azureFileVolume/.+",
        "type": "bind"
      },
      {
        "destination": "/scratch",
        "options": [
          "rbind",
          "rshared",
          "ro"
        ],
        "source": "sandbox:///tmp/atlas/emptydir/.+",
        "type": "bind"
      },
      {
        "destination": "/certs",
        "options": [
          "rbind",
          "rshared",
          "ro"
        ],
        "source": "sandbox:///tmp/atlas/secretsVolume/.+",
        "type": "bind"
      },
      {
        "destination": "/source",
        "options": [
          "rbind",
          "rshared",
          "rw"
        ],
        "source": "sandbox:///tmp/atlas/gitRepoVolume/.+",
        "type": "bind"
      },
      {
        "destination": "/etc/resolv.conf",
        "options": [
          "rbind",
          "rshared",
          "rw"
        ],
        "source": "sandbox:///tmp/atlas/resolvconf/.+",
        "type": "bind"
      }
    ],
    "exec_processes": [
      {
        "command": [
          "/bin/check",
          "--port",
          "8080"
        ],
        "signals": []
      }
    ],
    "signals": [
      9,
      15,
      2
    ],
    "user": {
      "user_idname": {
        "pattern": "1000",
        "strategy": "id"
      },
      "group_idnames": [
        {
          "pattern": "",
          "strategy": "any"
        }
      ],
      "umask": "0022"
    },
    "capabilities": {
      "ambient": [],
      "bounding": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_ADMIN",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ],
      "effective": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_ADMIN",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ],
      "inheritable": [],
      "permitted": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_ADMIN",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ]
    },
    "seccomp_profile_sha256": "",
    "allow_elevated": false,
    "working_dir": "/srv",
    "allow_stdio_access": true,
    "no_new_privileges": true
  },
  {
    "name": "pause-container",
    "command": [
      "/pause"
    ],
    "env_rules": [
      {
        "pattern": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "strategy": "string",
        "required": true
      },
      {
        "pattern": "TERM=xterm",
        "strategy": "string",
        "required": false
      }
    ],
    "layers": [
      "16b514057a06ad665f92c02863aca074fd5976c755d26bff16365299169e8415"
    ],
    "mounts": [],
    "exec_processes": [],
    "signals": [],
    "user": {
      "user_idname": {
        "pattern": "",
        "strategy": "any"
      },
      "group_idnames": [
        {
          "pattern": "",
          "strategy": "any"
        }
      ],
      "umask": "0022"
    },
    "capabilities": {
      "ambient": [],
      "bounding": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ],
      "effective": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ],
      "inheritable": [],
      "permitted": [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
      ]
    },
    "seccomp_profile_sha256": "",
    "allow_elevated": false,
    "working_dir": "/",
    "allow_stdio_access": true,
    "no_new_privileges": false
  }
]

allow_properties_access := true
allow_dump_stacks := false
allow_runtime_logging := false
allow_environment_variable_dropping := true
allow_unencrypted_scratch := false
allow_capability_dropping := true

mount_device := data.framework.mount_device
unmount_device := data.framework.unmount_device
rw_mount_device := data.framework.rw_mount_device
rw_unmount_device := data.framework.rw_unmount_device
mount_overlay := data.framework.mount_overlay
unmount_overlay := data.framework.unmount_overlay
create_container := data.framework.create_container
exec_in_container := data.framework.exec_in_container
exec_external := data.framework.exec_external
shutdown_container := data.framework.shutdown_container
signal_container_process := data.framework.signal_container_process
plan9_mount := data.framework.plan9_mount
plan9_unmount := data.framework.plan9_unmount
get_properties := data.framework.get_properties
dump_stacks := data.framework.dump_stacks
runtime_logging := data.framework.runtime_logging
load_fragment := data.framework.load_fragment
scratch_mount := data.framework.scratch_mount
scratch_unmount := data.framework.scratch_unmount

reason := {"errors": data.framework.errors}
