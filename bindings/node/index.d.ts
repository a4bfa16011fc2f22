/// <reference types="node" />

/**
 * Options of an engine. Those not given take the library's defaults, which vrust.h states under
 * the same names in snake case.
 */
export interface EngineOptions {
  /** Model folder, in Hugging Face's layout. */
  model: string;
  /** Tokenizer folder; the model folder when absent. */
  tokenizer?: string;
  /** Jinja chat template to use instead of the checkpoint's. */
  chatTemplate?: string;
  /** Bytes of the KV cache; 0: decided by the library from the memory there is. */
  kvCacheMemoryBytes?: number;
  /** Bytes of undrained events past which requests wait. */
  maxUndrainedBytes?: number;
  /** Seed of requests that bring none. */
  seed?: number;
  /** "auto" and "safetensors" read the folder's weights; "dummy" makes random ones. */
  loadFormat?: 'auto' | 'safetensors' | 'dummy';
  /** Arithmetic; "auto": bfloat16 for bfloat16 checkpoints, else float32. */
  dtype?: 'auto' | 'float32' | 'float' | 'bfloat16';
  /** "reference" is slow, for comparisons. */
  backend?: 'auto' | 'cpu' | 'reference';
  /** "priority": lower `priority` of the request first, then arrival. */
  schedulingPolicy?: 'fcfs' | 'priority';
  /** Most positions of a sequence; 0: the model's own limit. */
  maxModelLen?: number;
  /** Most sequences of a step. */
  maxNumSeqs?: number;
  /** Most tokens of a step. */
  maxNumBatchedTokens?: number;
  /** Positions of a KV block. */
  blockSize?: number;
  /** Longest part of a prompt in one step; 0: no such limit. */
  longPrefillTokenThreshold?: number;
  /** Most requests waiting; one more is QUEUE_FULL. */
  maxNumQueuedReqs?: number;
  /** Most logprobs a request may ask for. */
  maxLogprobs?: number;
  /** Compute threads; 0: one for each core that the process may use. */
  cpuThreads?: number;
  /** Ranks of tensor parallelism. */
  tensorParallelSize?: number;
  /** Shares the KV blocks of equal prefixes. */
  enablePrefixCaching?: boolean;
  /** Cuts long prompts to the step's budget. */
  enableChunkedPrefill?: boolean;
  /** Takes sampling defaults from generation_config.json. */
  useGenerationConfig?: boolean;
  /** Runs without a tokenizer: token prompts only, no text. */
  skipTokenizer?: boolean;
  /** Rarer options, the `extra_json` of vrust.h. */
  extra?: Record<string, unknown>;
}

/** A message of a chat, as in OpenAI's API. */
export interface ChatMessage {
  role: string;
  content?: unknown;
  [field: string]: unknown;
}

/** What both kinds of request take; any other field that vrust_submit_json knows goes as well. */
export interface SamplingFields {
  /** Most tokens to generate. */
  max_tokens?: number;
  /** 0 to 2; 0 is greedy. */
  temperature?: number;
  /** Above 0, up to 1. */
  top_p?: number;
  /** 0 or -1: off. */
  top_k?: number;
  /** Choices to generate. */
  n?: number;
  /** Up to 4 strings that end a choice. */
  stop?: string | string[];
  /** Seed of the noise. */
  seed?: number;
  /** Milliseconds after which the request ends with finishReason "deadline". */
  deadline_ms?: number;
  [field: string]: unknown;
}

/** The body of an OpenAI completions request. */
export interface CompletionRequest extends SamplingFields {
  /** Text, or token ids. */
  prompt: string | number[];
}

/** The body of an OpenAI chat completions request. */
export interface ChatRequest extends SamplingFields {
  messages: ChatMessage[];
}

/** A request, in OpenAI's JSON. */
export type Request = CompletionRequest | ChatRequest;

/** How a choice ended; "unknown" for reasons newer than this binding. */
export type FinishReason = 'stop' | 'length' | 'abort' | 'deadline' | 'unknown';

/** The log probability of one token at one place. */
export interface Logprob {
  tokenId: number;
  /** Natural logarithm of its probability. */
  logprob: number;
  /** 1 for the most likely token. */
  rank: number;
}

/** New output of one choice. What comes while nobody waits is put together. */
export interface Delta {
  /** The choice, 0 to n - 1. */
  choice: number;
  text: string;
  tokenIds: number[];
  /** One list for each place, the chosen token first; empty unless asked for. */
  logprobs: Logprob[][];
  /** Of the prompt, before any output: its logprobs if asked for, with `echo` also its text. */
  isPrompt: boolean;
  /** Set in the last delta of a choice, as are the fields below. */
  finishReason?: FinishReason;
  /** The stop string or stop token, or null. */
  stopReason?: string | number | null;
  /** Tokens of the prompt. */
  promptTokens?: number;
  /** Those of them that were found in the prefix cache. */
  cachedTokens?: number;
  /** Tokens generated for this choice. */
  completionTokens?: number;
  /** Sum of the chosen tokens' logprobs, if asked for. */
  cumulativeLogprob?: number;
}

/** One choice of a finished request. */
export interface Choice {
  text: string;
  tokenIds: number[];
  /** One list for each token, the chosen one first; empty unless asked for. */
  logprobs: Logprob[][];
  finishReason: FinishReason;
  /** The stop string or stop token, or null. */
  stopReason: string | number | null;
  completionTokens: number;
}

/** A finished request. */
export interface Result {
  /** The text of the first choice. */
  text: string;
  choices: Choice[];
  /** One list for each token of the prompt, the first one empty; empty unless asked for. */
  promptLogprobs: Logprob[][];
  promptTokens: number;
  /** Of all choices. */
  completionTokens: number;
}

/** Options of one request. */
export interface GenerateOptions {
  /** Aborts the request; its stream then rejects with the signal's reason. */
  signal?: AbortSignal;
}

/**
 * The deltas of one request. Leaving a `for await` early, `return()` and dropping the stream abort
 * the request. A request that fails later than its submission rejects with VrustError.
 */
export interface Stream extends AsyncIterableIterator<Delta> {
  next(): Promise<IteratorResult<Delta, undefined>>;
  return(value?: unknown): Promise<IteratorResult<Delta, undefined>>;
  throw(error?: unknown): Promise<IteratorResult<Delta, undefined>>;
  [Symbol.asyncIterator](): Stream;
  /** The same as `return()`. */
  [Symbol.asyncDispose](): Promise<void>;
  /** Ends the request: the last delta says finishReason "abort", unless it has ended already. */
  abort(): void;
}

/** What the pieces of a chat prompt are rendered with. */
export interface RenderOptions {
  /** Tools, as in OpenAI's API. */
  tools?: unknown[];
  /** Further variables of the template. */
  kwargs?: Record<string, unknown>;
  /** Ends with the opening of an assistant turn. Default: true, but with continueFinalMessage. */
  addGenerationPrompt?: boolean;
  /** Leaves the last message open, so that the model goes on with it. Default: false. */
  continueFinalMessage?: boolean;
}

/** What a ChatParser looks for. */
export interface ChatParserOptions {
  /** Default: "auto", what the chat template shows. */
  toolFormat?: 'auto' | 'none' | 'hermes' | 'llama3_json' | 'mistral' | 'pythonic' | 'qwen3_xml';
  /** Default: "auto". */
  reasoningFormat?: 'auto' | 'none' | 'think' | 'mistral';
  /** The request's tools, as in OpenAI's API; without any, no calls are looked for. */
  tools?: unknown[];
  /** The request's further variables of the template. */
  chatTemplateKwargs?: Record<string, unknown>;
}

/** What a ChatParser has decided. */
export interface ChatParserInfo {
  /** A format's first name, or null when no calls are looked for. */
  toolFormat: string | null;
  /** A format's first name, or null when no reasoning is looked for. */
  reasoningFormat: string | null;
  /** The prompt has opened the model's thoughts already. */
  startsInReasoning: boolean;
  /** Markers are special tokens: the request must say `skip_special_tokens: false`. */
  keepSpecialTokens: boolean;
}

/** A part of a tool call: the first one has `id`, `type` and `function.name`. */
export interface ToolCallDelta {
  index: number;
  id?: string;
  type?: 'function';
  function: { name?: string; arguments: string };
}

/** One of OpenAI's streaming deltas; exactly one field is there. */
export interface ChatDelta {
  reasoning?: string;
  content?: string;
  tool_calls?: ToolCallDelta[];
}

/**
 * Tells reasoning and tool calls from content in the text of one choice as it comes. It may outlive
 * its engine. One that is dropped gives its memory back, as does `close()`, after which every other
 * method throws VrustError INVALID_ARGUMENT.
 */
export interface ChatParser {
  readonly info: Readonly<ChatParserInfo>;
  /**
   * Takes the text that came next, and gives what it makes certain, often nothing. However the text
   * is cut between characters, the deltas join to the same.
   */
  push(text: string): ChatDelta[];
  /** Ends the answer: what `push` held back. The parser is then as new. */
  finish(): ChatDelta[];
  /** Gives the parser's memory back. Again: does nothing. */
  close(): void;
  /** The same as `close()`. */
  [Symbol.dispose](): void;
}

/** A snapshot of an engine's figures, as VrustStats; counters count from the engine's start. */
export interface Stats {
  numRequestsRunning: number;
  numRequestsWaiting: number;
  liveRequests: number;
  tokenRows: number;
  logitsRows: number;
  kvBlocksTotal: number;
  kvBlocksUsed: number;
  kvBlocksCached: number;
  kvBlocksFree: number;
  /** 0 to 1. */
  kvCacheUsage: number;
  prefixCacheQueries: number;
  prefixCacheHits: number;
  numPreemptions: number;
  promptTokens: number;
  promptTokensCached: number;
  generationTokens: number;
  finishedStop: number;
  finishedLength: number;
  finishedAbort: number;
  finishedDeadline: number;
  finishedError: number;
  rejectedQueueFull: number;
  undrainedBytes: number;
  steps: number;
  stepSeconds: number;
  lastStepSeconds: number;
}

/**
 * A model being served. It keeps the process alive only while a request, its creation or its
 * close() is under way, and belongs to the thread (main or worker) that created it. After close()
 * every method but close() throws VrustError SHUTTING_DOWN. An engine that is dropped is closed.
 */
export class Engine {
  private constructor();
  /**
   * Loads a model off the event loop. Rejects with VrustError: INVALID_ARGUMENT or UNSUPPORTED for
   * the options, NOT_FOUND, IO, MODEL_FORMAT or TOKENIZER for the folder.
   */
  static create(options: EngineOptions): Promise<Engine>;
  /** Facts about the engine: model, max_model_len, vocab_size, dtype, .. */
  readonly info: Readonly<Record<string, unknown>>;
  /**
   * Submits a request at once. Throws VrustError for bad parameters (INVALID_ARGUMENT,
   * UNSUPPORTED) and for a full queue (QUEUE_FULL, retryable); the stream rejects for the rest.
   */
  generate(request: Request, options?: GenerateOptions): Stream;
  /** Submits a request; resolves with all its output. Rejects as `generate` and its stream. */
  generateText(request: Request, options?: GenerateOptions): Promise<Result>;
  /** The token ids of a text. `addSpecialTokens` (default true) adds the model's own (bos). */
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  /** The text of token ids. `skipSpecialTokens` (default true) leaves special ones out. */
  decode(ids: Iterable<number>, options?: { skipSpecialTokens?: boolean }): string;
  /** A chat as the model's prompt. Throws VrustError TEMPLATE when the template fails. */
  renderChat(messages: ChatMessage[], options?: RenderOptions): string;
  /**
   * A parser for one choice of a chat's answer. Throws VrustError: INVALID_ARGUMENT for an unknown
   * format and malformed tools, TEMPLATE when the chat template cannot be used.
   */
  chatParser(options?: ChatParserOptions): ChatParser;
  /** The engine's figures now. */
  stats(): Stats;
  /** The same in Prometheus' text format, under vLLM's names. */
  prometheus(): string;
  /** Aborts what runs and ends the engine; resolves when its memory is given back. */
  close(): Promise<void>;
  /** The same as `close()`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** What went wrong in one call or one request. */
export class VrustError extends Error {
  private constructor();
  /** The status by name, such as "INVALID_ARGUMENT". */
  readonly code: string;
  /** The status by number, as in vrust.h. */
  readonly status: number;
  /** Whether the same call may succeed later without a change. */
  readonly retryable: boolean;
  /** Details, such as { field: "max_tokens", limit: 1, value: 0 }. */
  readonly detail: Readonly<Record<string, unknown>>;
}

/** The library's version, such as "0.1.0". */
export function version(): string;

/** How the library was built: version, abi_version, target, profile, backends, .. */
export function buildInfo(): Record<string, unknown>;
