package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	vrust "github.com/vrust/vrust/bindings/go"
)

func collectEnvCommand() *cobra.Command {
	return &cobra.Command{
		Use: "collect-env", Short: "Print what a bug report should say", Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			out := command.OutOrStdout()
			for _, section := range environment() {
				fmt.Fprintf(out, "%s\n", section.title)
				for _, line := range section.lines {
					fmt.Fprintf(out, "  %-22s %s\n", line[0]+":", line[1])
				}
			}
			return nil
		},
	}
}

type section struct {
	title string
	lines [][2]string
}

// environment names no environment variable's value that may be a secret.
func environment() []section {
	var build map[string]any
	_ = json.Unmarshal(vrust.BuildInfo(), &build)
	library := section{title: "libvrust"}
	for name, value := range build {
		library.lines = append(library.lines, [2]string{name, fmt.Sprint(value)})
	}
	sort.Slice(library.lines, func(i, j int) bool { return library.lines[i][0] < library.lines[j][0] })
	command := section{title: "Command", lines: [][2]string{{"go", runtime.Version()}}}
	if info, ok := debug.ReadBuildInfo(); ok {
		command.lines = append(command.lines, [2]string{"module", info.Main.Path})
	}
	system := section{title: "System", lines: [][2]string{
		{"os", field("/etc/os-release", "PRETTY_NAME", "=")},
		{"kernel", firstLine("/proc/sys/kernel/osrelease")},
		{"architecture", runtime.GOARCH},
		{"libc", output("ldd", "--version")},
		{"memory", field("/proc/meminfo", "MemTotal", ":")},
		{"memory limit", firstLine("/sys/fs/cgroup/memory.max")},
		{"cpu limit", firstLine("/sys/fs/cgroup/cpu.max")},
	}}
	cpu := section{title: "CPU", lines: [][2]string{
		{"model", field("/proc/cpuinfo", "model name", ":")},
		{"cores of the process", fmt.Sprint(runtime.NumCPU())},
		{"instructions", instructions()},
	}}
	gpu := section{title: "GPU", lines: [][2]string{
		{"nvidia-smi", output("nvidia-smi", "--query-gpu=name,driver_version,memory.total",
			"--format=csv,noheader")},
	}}
	set := section{title: "Environment"}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		secret := strings.Contains(name, "KEY") || strings.Contains(name, "TOKEN")
		for _, prefix := range []string{"VRUST_", "VLLM_", "HF_", "GOMAXPROCS", "LD_LIBRARY_PATH"} {
			if strings.HasPrefix(name, prefix) {
				if secret {
					value = "(set)"
				}
				set.lines = append(set.lines, [2]string{name, value})
			}
		}
	}
	return []section{library, command, system, cpu, gpu, set}
}

// field is the value of the first line of a file that begins with a name.
func field(path, name, separator string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		key, value, found := strings.Cut(line, separator)
		if found && strings.TrimSpace(key) == name {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return "unknown"
}

func firstLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

func output(name string, args ...string) string {
	text, err := exec.Command(name, args...).Output()
	if err != nil {
		return "none"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// instructions are those of the CPU that the engine has code for.
func instructions() string {
	var found []string
	flags := strings.Fields(field("/proc/cpuinfo", "flags", ":"))
	for _, flag := range flags {
		switch flag {
		case "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8":
			found = append(found, flag)
		}
	}
	return strings.Join(found, " ")
}
