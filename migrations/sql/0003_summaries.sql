CREATE TRIGGER steps_summary AFTER INSERT OR UPDATE ON steps FOR EACH ROW
    WHEN (NEW.kind = 'model_call' AND NEW.status = 'finished' AND NEW.claim > 0
          AND NEW.output ?& ARRAY['summary', 'through'])
    EXECUTE FUNCTION minion_keep_summary();
