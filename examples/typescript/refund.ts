// Submits a task, waits until it needs a person, approves the call, and prints the output.
import createClient from "openapi-fetch";
import type { components, paths } from "./minions.js";

type Task = components["schemas"]["Task"];
type Problem = components["schemas"]["Problem"];

const WAIT_SECONDS = 30;

/** A refusal of the API: `problem.code` is for programs, the message for people. */
class Refused extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail);
  }
}

function connect(key: string | undefined) {
  const client = createClient<paths>({
    baseUrl: process.env["MINION_API_URL"] ?? "http://127.0.0.1:8700",
    headers: { Authorization: `Bearer ${key}` },
  });
  // Every error is problem details (RFC 9457), so one place turns them into exceptions.
  client.use({
    async onResponse({ response }) {
      if (!response.ok) throw new Refused((await response.json()) as Problem);
    },
  });
  return client;
}

const submitter = connect(process.env["SUBMITTER_KEY"]);
const approver = connect(process.env["APPROVER_KEY"]);

async function submit(order: string, complaint: string): Promise<Task> {
  const { data } = await submitter.POST("/v1/tasks", {
    body: { agent: "refund-desk", input: { order, complaint }, idempotency_key: `refund of ${order}` },
  });
  return data!;
}

/** Returns the task when it has ended or waits for a person. */
async function settled(id: string): Promise<Task> {
  for (;;) {
    const { data } = await submitter.GET("/v1/tasks/{task_id}", { params: { path: { task_id: id }, query: { wait: 1 } } });
    const task = data!;
    if (task.finished_at !== null || task.wait_reason === "approval") return task;
  }
}

async function approve(id: string): Promise<void> {
  const path = { task_id: id };
  const { data: why } = await approver.GET("/v1/tasks/{task_id}/why", { params: { path } });
  console.log(why!.sentence);
  // The proposal names what was seen: the decision is refused if the task waits for another call now.
  const proposal = String(why!.facts["proposal"]);
  const { data } = await approver.POST("/v1/tasks/{task_id}/decisions", {
    params: { path },
    body: { verdict: "approve", proposal, reason: "The photo shows it." },
  });
  console.log(`Approved ${data!.decision.name}`);
}

try {
  await submitter.POST("/v1/tasks", { body: { agent: "no-such-agent", input: null } });
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.log(`${error.problem.status} ${error.problem.code}: ${error.message}`);
}

let task = await settled((await submit("A-17", "It arrived broken")).id);
if (task.wait_reason === "approval") {
  await approve(task.id);
  const { data } = await submitter.GET("/v1/tasks/{task_id}", {
    params: { path: { task_id: task.id }, query: { wait: WAIT_SECONDS } },
  });
  task = data!;
}
console.log(task.state, JSON.stringify(task.output), task.error?.message ?? "");
