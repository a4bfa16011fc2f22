// Package cli is the vrust command: its subcommands and flags.
package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	vrust "github.com/vrust/vrust/bindings/go"
)

// usageError is what the user can mend on the command line; the command exits with 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Run runs the command and gives its exit status: 0, 1 for failures, 2 for wrong usage.
func Run(args []string, in io.Reader, out, errOut io.Writer) int {
	root := &cobra.Command{
		Use:           "vrust",
		Short:         "Serve large language models over OpenAI's HTTP API",
		Version:       vrust.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(root *cobra.Command, _ []string) error { return root.Help() },
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(serveCommand(), chatCommand(), completeCommand(), benchCommand(),
		runBatchCommand(), collectEnvCommand())
	err := root.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(errOut, "vrust: %v\n", err)
	var wrong usageError
	if errors.As(err, &wrong) {
		return 2
	}
	return 1
}
