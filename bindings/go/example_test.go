package vrust_test

import (
	"context"
	"fmt"

	vrust "github.com/vrust/vrust/bindings/go"
)

func Example() {
	ctx := context.Background()
	engine, err := vrust.Open(ctx, vrust.Options{Model: "../../examples/demo-model"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	request := vrust.Request{
		Prompt: "Once upon a time", MaxTokens: vrust.Ptr(8), Temperature: vrust.Ptr(0.0),
	}
	tokens := 0
	for delta, err := range engine.Generate(ctx, request) {
		if err != nil {
			fmt.Println(err)
			return
		}
		tokens += len(delta.TokenIDs) // delta.Text is the text.
	}
	fmt.Println(tokens, "tokens")
	// Output: 8 tokens
}
