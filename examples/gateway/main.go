// Command vrust serves a large language model over OpenAI's HTTP API, and talks to such servers.
package main

import (
	"os"

	"github.com/vrust/vrust/examples/gateway/internal/cli"
)

func main() { os.Exit(cli.Run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
